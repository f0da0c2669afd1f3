//! The channel against Flume's file channel: puts alone, and takes at the tail while puts run.
//!
//! Both sync each commit, of a put and of a take, on the same file system; both take as many events at once as they put, and
//! an event counts as taken when it is durable that it is gone. A consumer of the channel may take on before that, one of Flume
//! may not, so ours is measured both ways. What is divided was measured within one round; medians of the rounds are printed.

use serde_json::{Value, json};

use crate::java::{FLUME, Java};
use crate::load::{self, Load, Round};
use crate::stores::{PEERS, Peer};
use crate::{Arguments, load_average, mb_s, spread_of};

const PUTTING: (u32, u32) = (16, 0);
const AT_THE_TAIL: (u32, u32) = (8, 1);
/// As `penstock-bench channel` has it.
const TAKES_IN_FLIGHT: usize = 16;

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    let mut flume = arguments.server(&FLUME)?;
    let mut sheet = Sheet::default();
    for _ in 0..arguments.rounds {
        round(arguments, &mut flume, &mut sheet)?;
    }
    let load = load_average();
    if arguments.json {
        let Arguments { batch, size, rounds, seconds, .. } = arguments;
        println!(
            "{}",
            json!({
                "batch": batch, "size": size, "rounds": rounds, "seconds": seconds, "load_average": load,
                "rows": sheet.json(),
            })
        );
    } else {
        println!("load average {}\n", load.unwrap_or_default());
        println!("| what | goal | median | min | max |\n|---|---|---|---|---|");
        for (what, goal, values) in &sheet.0 {
            let (min, median, max) = spread_of(values);
            println!("| {what} | {goal} | {} | {} | {} |", digits(median), digits(min), digits(max));
        }
    }
    Ok(())
}

fn round(arguments: &Arguments, flume: &mut Java, sheet: &mut Sheet) -> Result<(), String> {
    let load = |(producers, consumers)| Load { producers, consumers, ..arguments.load() };
    let size = arguments.size;
    let own = |name: &str, load: &Load| -> Result<Round, String> {
        let peer: &Peer = PEERS.iter().find(|peer| peer.name == name).ok_or("no such store")?;
        load::round(&arguments.dir.join(name), peer, load)
    };
    let folder = arguments.dir.join(FLUME.name);

    let putting = load(PUTTING);
    let growing = own("penstock", &putting)?;
    let theirs = flume.round(&folder, &putting)?;
    let warm = own("penstock-warm", &putting)?;
    let put_mb_s = |round: &Round| mb_s(round.put_ev_s(), size);
    sheet.add("put, 16 producers, warm pool, MB/s", "", put_mb_s(&warm));
    sheet.add("put, 16 producers, growing pool, MB/s", "", put_mb_s(&growing));
    sheet.add("put, 16 producers, Flume, MB/s", "", put_mb_s(&theirs));
    sheet.add("put: warm pool / Flume", ">= 20", warm.put_ev_s() / theirs.put_ev_s());
    sheet.add("put: growing pool / Flume", ">= 20", growing.put_ev_s() / theirs.put_ev_s());
    sheet.add("put: CPU-s/GiB, warm pool", "", warm.cpu_s_per_gib(size));
    sheet.add("put: CPU-s/GiB, Flume", "", theirs.cpu_s_per_gib(size));

    let tail = load(AT_THE_TAIL);
    let ours = own("penstock", &Load { takes_in_flight: TAKES_IN_FLIGHT, ..tail })?;
    let theirs = flume.round(&folder, &tail)?;
    let alike = own("penstock", &tail)?;
    let kept_up = |round: &Round| round.take_events as f64 / round.put_events as f64;
    sheet.add("tail, 8 producers, 1 consumer: put, MB/s", "", put_mb_s(&ours));
    sheet.add("tail: put, Flume, MB/s", "", put_mb_s(&theirs));
    sheet.add("tail: take, ev/s", "", ours.take_ev_s());
    sheet.add("tail: take, one transaction at a time, ev/s", "", alike.take_ev_s());
    sheet.add("tail: take, Flume, ev/s", "", theirs.take_ev_s());
    sheet.add("tail: taken of what was put", "", kept_up(&ours));
    sheet.add("tail: taken of what was put, one at a time", "", kept_up(&alike));
    sheet.add("tail: taken of what was put, Flume", "", kept_up(&theirs));
    sheet.add("tail: take / Flume", ">= 50", ours.take_ev_s() / theirs.take_ev_s());
    sheet.add("tail: take, one at a time / Flume", "", alike.take_ev_s() / theirs.take_ev_s());
    Ok(())
}

/// Rows in the order of their first value.
#[derive(Default)]
struct Sheet(Vec<(&'static str, &'static str, Vec<f64>)>);

impl Sheet {
    fn add(&mut self, what: &'static str, goal: &'static str, value: f64) {
        match self.0.iter_mut().find(|row| row.0 == what) {
            Some(row) => row.2.push(value),
            None => self.0.push((what, goal, vec![value])),
        }
    }

    fn json(&self) -> Value {
        let row = |(what, goal, values): &(&str, &str, Vec<f64>)| {
            let (min, median, max) = spread_of(values);
            json!({"what": what, "goal": goal, "min": min, "median": median, "max": max})
        };
        self.0.iter().map(row).collect()
    }
}

/// As many digits as mean something.
fn digits(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}
