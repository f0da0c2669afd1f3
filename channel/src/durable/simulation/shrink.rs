//! Makes a failing history small: leaves out steps, then simplifies what remains, as long as it still fails.

use super::plan::{Plan, Step};

/// Runs of the history that shrinking may cost.
const ATTEMPTS: usize = 6000;

/// The smallest plan found for which `fails` still says so.
pub fn shrink(plan: &Plan, fails: &dyn Fn(&Plan) -> bool) -> Plan {
    let mut best = plan.clone();
    let mut attempts = 0;
    let mut try_plan = |best: &mut Plan, candidate: Plan| -> bool {
        attempts += 1;
        let better = attempts <= ATTEMPTS && candidate != *best && fails(&candidate);
        if better {
            *best = candidate;
        }
        better
    };
    loop {
        let before = best.clone();
        let mut chunk = best.steps.len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < best.steps.len() {
                let mut steps = best.steps.clone();
                steps.drain(at..(at + chunk).min(steps.len()));
                let candidate = best.with_steps(steps);
                if !try_plan(&mut best, candidate) {
                    at += chunk;
                }
            }
            if chunk == 1 {
                break;
            }
            chunk = chunk.div_ceil(2);
        }
        for simpler in [
            Plan { encrypted: false, ..best.clone() },
            Plan { compressed: false, ..best.clone() },
            Plan { overlap: false, ..best.clone() },
            Plan { one_device: false, ..best.clone() },
            Plan { depth: 1, ..best.clone() },
            Plan { capacity: 10_000, ..best.clone() },
            Plan { hot_tail: 2000, ..best.clone() },
            Plan { dirs: best.dirs.saturating_sub(1).max(1), ..best.clone() },
        ] {
            try_plan(&mut best, simpler);
        }
        for at in 0..best.steps.len() {
            for arg in 0..3 {
                for smaller in [0, best.steps[at].args[arg] / 2, best.steps[at].args[arg].saturating_sub(1)] {
                    let mut steps: Vec<Step> = best.steps.clone();
                    steps[at].args[arg] = smaller;
                    let candidate = best.with_steps(steps);
                    if try_plan(&mut best, candidate) {
                        break;
                    }
                }
            }
        }
        if best == before {
            return best;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::simulation::plan::Verb;

    #[test]
    fn what_does_not_matter_is_left_out() {
        let plan = Plan::from_seed(3);
        let needed = |plan: &Plan| {
            let puts = plan.steps.iter().filter(|step| step.verb == Verb::Put && step.args[1] > 1).count();
            puts >= 2 && plan.steps.iter().any(|step| step.verb == Verb::Crash)
        };
        assert!(needed(&plan));
        let small = shrink(&plan, &needed);
        assert_eq!(small.steps.len(), 3, "{small}");
        assert!(small.dirs == 1 && !small.encrypted);
    }
}
