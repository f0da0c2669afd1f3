//! The first configuration of Flume's user guide: netcat on 44444, a memory channel, the logger. It runs unchanged, and the
//! console shows what the user guide shows.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use system_tests::penstock::Agent;
use system_tests::{ports, repository};

const LIMIT: Duration = Duration::from_secs(20);

fn example() -> String {
    fs::read_to_string(repository().join("docs/examples/example.conf")).expect("read docs/examples/example.conf")
}

/// Says hello as the user guide does, by telnet, and looks for the line that the user guide shows.
fn check(agent: &mut Agent, port: u16) {
    let mut stream = TcpStream::connect(("localhost", port)).expect("connect to the netcat source");
    stream.set_read_timeout(Some(LIMIT)).expect("set a limit");
    stream.write_all(b"Hello world!\r\n").expect("send a line");
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).expect("read the answer");
    assert_eq!(answer, "OK\n");
    let shown = "Event: { headers:{} body: 48 65 6C 6C 6F 20 77 6F 72 6C 64 21 0D          Hello world!. }";
    agent.process().await_log(shown, 0, LIMIT);
    let size = agent.counter("CHANNEL.c1", "ChannelCapacity");
    assert_eq!(size, Some(1000));
    assert_eq!(agent.stop(), 0);
}

#[test]
fn the_example_of_the_user_guide_runs_unchanged() {
    let mut agent = Agent::start_new(&example(), &[44_444]);
    check(&mut agent, 44_444);
}

#[test]
fn the_example_runs_on_another_port() {
    let port = ports::free();
    let text = example().replace("44444", &port.to_string());
    let mut agent = Agent::start_new(&text, &[port]);
    check(&mut agent, port);
}
