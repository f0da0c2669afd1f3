//! A history on real files in a process that dies anywhere, and the books of a second one that outlives it.
//!
//! One seed gives one history, on real files too: one thread, a clock that is counted, no randomness. So the process that
//! is going to die only tells how many steps it has done; what it had promised by then, the survivor knows from its own run
//! of the same plan. The answers of a step count once the step was told: what died in it is of unknown outcome.

use std::path::Path;
use std::time::Duration;

use wal::io::real::Backend;

use super::model::Model;
use super::plan::Plan;
use super::world::World;

/// What is promised, and to be kept, before a step has answered.
#[derive(Debug, Clone)]
pub struct Books {
    plan: Plan,
    backend: Backend,
    pub(super) model: Model,
    pub(super) now: Duration,
    pub(super) encrypts: bool,
}

/// Does the steps of `plan` below `root`, and calls `told` after each.
pub fn do_steps(plan: &Plan, backend: Backend, root: &Path, told: &mut dyn FnMut()) -> Result<(), String> {
    let mut world = World::on_real_files(plan.clone(), root).with_backend(backend);
    for step in &plan.steps {
        world.apply(*step)?;
        told();
    }
    Ok(())
}

/// The books after each number of told steps, from a run of its own below `root`; and the events put and settled in it.
pub fn books(plan: &Plan, backend: Backend, root: &Path) -> Result<(Vec<Books>, u64, u64), String> {
    let mut world = World::on_real_files(plan.clone(), root).with_backend(backend);
    world.keeps_books = true;
    // Who opens it after that draws other numbers, as every process does.
    let after = Plan { seed: !plan.seed, ..plan.with_steps(Vec::new()) };
    let mut all = Vec::new();
    for step in &plan.steps {
        world.asked = None;
        let before = world.books();
        world.apply(*step)?;
        let (model, now, encrypts) = world.asked.take().unwrap_or(before);
        all.push(Books { plan: after.clone(), backend, model, now, encrypts });
    }
    let (model, now, encrypts) = world.books();
    all.push(Books { plan: after.clone(), backend, model, now, encrypts });
    Ok((all, world.report().events_put, world.report().events_settled))
}

impl Books {
    /// Opens what was left behind below `root`, compares it, and lets it come to its end.
    pub fn judge(&self, root: &Path) -> Result<(), String> {
        let plan = Plan { encrypted: self.encrypts, ..self.plan.clone() };
        let mut world = World::on_real_files(plan, root).with_backend(self.backend);
        (world.model, world.now) = (self.model.clone(), self.now);
        world.finish().map(|_| ())
    }
}
