//! The example programs as a user runs them: started, spoken to, ended by SIGTERM.

#[path = "../../engine/tests/integration/client.rs"]
#[expect(dead_code, reason = "the engine's tests use the rest")]
mod client;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdout, Command, Stdio},
};

use client::{Client, exchange, request, status};
use rustix::process::{Pid, Signal, kill_process};

/// A program that listens on a port the kernel chose.
struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Program {
    fn start(binary: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(binary)
            .args(["--listen", "127.0.0.1:0", "--stop-seconds", "1"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        let address = line.strip_prefix("listening on ").and_then(|rest| rest.split_once(','));
        let address = address.unwrap_or_else(|| panic!("not ready: {line}")).0;
        Self { child, output, address: address.parse().expect("an address") }
    }

    fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// The status of the answer to an upgrade that is refused.
    fn refusal(&self, target: &str, subprotocols: &[&str]) -> u16 {
        status(&exchange(self.address, &request(target, subprotocols)))
    }

    /// Asks the program to end, which it does with success.
    fn stop(mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("it runs");
        assert!(self.child.wait().expect("its end").success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn fanout_publishes_to_all_but_the_publisher() {
    let program = Program::start(env!("CARGO_BIN_EXE_fanout"), &[]);
    let mut clients: Vec<Client> = (0..4).map(|_| program.connect()).collect();
    clients[0].send_text("first");
    for client in &mut clients[1..] {
        assert_eq!(client.receive_text(), "first");
    }
    clients[1].send_text("second");
    for index in [0, 2, 3] {
        assert_eq!(clients[index].receive_text(), "second");
    }
    program.stop();
}

#[test]
fn fanout_gathers_and_echoes_when_told() {
    let program = Program::start(env!("CARGO_BIN_EXE_fanout"), &["--echo", "--window-ms", "1"]);
    let mut clients: Vec<Client> = (0..4).map(|_| program.connect()).collect();
    for number in 0..10 {
        clients[0].send_text(&number.to_string());
    }
    for client in &mut clients {
        for number in 0..10 {
            assert_eq!(client.receive_text(), number.to_string());
        }
    }
    program.stop();
}

#[test]
fn ticker_sends_the_prices_of_every_symbol_in_order() {
    let mut program = Program::start(env!("CARGO_BIN_EXE_ticker"), &["--rate", "2000", "--symbols", "5"]);
    let mut client = program.connect();
    let mut updates = BTreeMap::<u64, u64>::new();
    for _ in 0..500 {
        let price = client.receive_text();
        let numbers: Vec<u64> = price
            .split(|character: char| !character.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect();
        let [symbol, update] = numbers[..] else { panic!("{price}") };
        assert_eq!(update % 5, symbol);
        assert!(updates.insert(symbol, update).is_none_or(|before| before < update), "{price}");
    }
    assert_eq!(updates.len(), 5);
    let mut counters = String::new();
    program.output.read_line(&mut counters).expect("a line each second");
    assert!(counters.contains(" updates, ") && counters.contains(" conflated, "), "{counters}");
    program.stop();
}

#[test]
fn chat_local_lets_members_in_and_passes_on_what_they_say() {
    let program = Program::start(env!("CARGO_BIN_EXE_chat_local"), &["--cores", "1"]);
    assert_eq!(program.refusal("/?token=7f3a", &[]), 400);
    assert_eq!(program.refusal("/", &["chat.v1"]), 401);
    assert_eq!(program.refusal("/?token=0000", &["chat.v1"]), 403);
    let member = |token: &str| {
        let target = format!("/?token={token}");
        Client::connect_to(program.address, &target, &["chat.v1"]).0
    };
    let (mut ada, mut grace) = (member("7f3a"), member("91c2"));
    grace.send_text("good morning");
    let heard =
        std::iter::repeat_with(|| ada.receive_text()).take(5).find(|text| text.contains("good morning"));
    assert!(heard.is_some_and(|text| text.contains("Grace")));
    program.stop();
}
