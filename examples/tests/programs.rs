//! The example programs as a user runs them: started, spoken to by a client of somebody else's, ended by
//! SIGTERM.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    net::TcpStream,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tungstenite::{
    Message, WebSocket, client::IntoClientRequest, handshake::HandshakeError, http::HeaderValue,
};

/// A program that listens on a port the kernel chose.
struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
    address: String,
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
        let address = address.unwrap_or_else(|| panic!("not ready: {line}")).0.to_owned();
        Self { child, output, address }
    }

    fn connect(&self, target: &str, subprotocol: Option<&'static str>) -> Result<Client, u16> {
        let stream = TcpStream::connect(&self.address).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let mut request = format!("ws://{}{target}", self.address).into_client_request().expect("a request");
        if let Some(name) = subprotocol {
            request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(name));
        }
        match tungstenite::client(request, stream) {
            Ok((client, _)) => Ok(Client(client)),
            Err(HandshakeError::Failure(tungstenite::Error::Http(answer))) => Err(answer.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    fn client(&self) -> Client {
        self.connect("/", None).expect("an upgrade")
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

struct Client(WebSocket<TcpStream>);

impl Client {
    fn say(&mut self, text: &str) {
        self.0.send(Message::text(text)).expect("send");
    }

    fn hear(&mut self) -> String {
        loop {
            match self.0.read().expect("a message") {
                Message::Text(text) => return text.as_str().to_owned(),
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn fanout_publishes_to_all_but_the_publisher() {
    let program = Program::start(env!("CARGO_BIN_EXE_fanout"), &[]);
    let mut clients: Vec<Client> = (0..4).map(|_| program.client()).collect();
    clients[0].say("first");
    for client in &mut clients[1..] {
        assert_eq!(client.hear(), "first");
    }
    clients[1].say("second");
    for index in [0, 2, 3] {
        assert_eq!(clients[index].hear(), "second");
    }
    program.stop();
}

#[test]
fn fanout_gathers_and_echoes_when_told() {
    let program = Program::start(env!("CARGO_BIN_EXE_fanout"), &["--echo", "--window-ms", "1"]);
    let mut clients: Vec<Client> = (0..4).map(|_| program.client()).collect();
    for number in 0..10 {
        clients[0].say(&number.to_string());
    }
    for client in &mut clients {
        for number in 0..10 {
            assert_eq!(client.hear(), number.to_string());
        }
    }
    program.stop();
}

#[test]
fn ticker_sends_the_prices_of_every_symbol_in_order() {
    let mut program = Program::start(env!("CARGO_BIN_EXE_ticker"), &["--rate", "2000", "--symbols", "5"]);
    let mut client = program.client();
    let mut updates = BTreeMap::<u64, u64>::new();
    for _ in 0..500 {
        let price = client.hear();
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
    assert_eq!(program.connect("/?token=7f3a", None).err(), Some(400));
    assert_eq!(program.connect("/", Some("chat.v1")).err(), Some(401));
    assert_eq!(program.connect("/?token=0000", Some("chat.v1")).err(), Some(403));
    let mut ada = program.connect("/?token=7f3a", Some("chat.v1")).expect("a member");
    let mut grace = program.connect("/?token=91c2", Some("chat.v1")).expect("a member");
    grace.say("good morning");
    let heard = std::iter::repeat_with(|| ada.hear()).take(5).find(|text| text.contains("good morning"));
    assert!(heard.is_some_and(|text| text.contains("Grace")));
    program.stop();
}
