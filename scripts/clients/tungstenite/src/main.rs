//! `tungstenite-client URL SERVER_PID`: what tungstenite sees of the echo server.
//!
//! Prints a line per check; the last one stops the server.

use std::{
    error::Error,
    net::TcpStream,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tungstenite::{
    ClientRequestBuilder, Message, WebSocket,
    http::{Response, StatusCode},
    protocol::{
        CloseFrame,
        frame::{
            Frame,
            coding::{CloseCode, Data, OpCode},
        },
    },
};

type Outcome = Result<(), Box<dyn Error>>;
type Socket = WebSocket<TcpStream>;
type Upgraded = (Socket, Response<Option<Vec<u8>>>);
type Check = (&'static str, fn(&Target) -> Outcome);

const CHECKS: &[Check] = &[
    ("text", text),
    ("binary", binary),
    ("empty message", empty_message),
    ("fragmented message, ping between", fragmented_message),
    ("ping and pong", ping_and_pong),
    ("many in flight", many_in_flight),
    ("largest message", largest_message),
    ("close code", close_code),
    ("subprotocol", subprotocol),
    ("rejection", rejection),
    ("deferred accept", deferred_accept),
    ("going away", going_away),
];

const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, server] = arguments.as_slice() else {
        eprintln!("usage: tungstenite-client URL SERVER_PID");
        return ExitCode::from(2);
    };
    let server = server.parse().ok().and_then(Pid::from_raw).expect("a process id");
    let target = Target { url: url.clone(), server };
    std::panic::set_hook(Box::new(|panic| print!("FAIL {panic} in ")));
    let mut failed = 0;
    for (name, check) in CHECKS {
        match catch_unwind(AssertUnwindSafe(|| check(&target))) {
            Ok(Ok(())) => println!("ok   {name}"),
            Ok(Err(error)) => {
                failed += 1;
                println!("FAIL {name}: {error}");
            }
            Err(_) => {
                failed += 1;
                println!("{name}");
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Target {
    url: String,
    server: Pid,
}

impl Target {
    fn open(&self, path: &str, subprotocols: &[&str]) -> Result<Upgraded, Box<dyn Error>> {
        let uri: tungstenite::http::Uri = format!("{}{path}", self.url).parse()?;
        let stream = TcpStream::connect(uri.authority().expect("an address in the URL").as_str())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        let request = subprotocols
            .iter()
            .fold(ClientRequestBuilder::new(uri), |request, name| request.with_sub_protocol(*name));
        tungstenite::client(request, stream).map_err(|error| match error {
            tungstenite::HandshakeError::Failure(error) => error.into(),
            interrupted => interrupted.to_string().into(),
        })
    }

    fn connect(&self) -> Result<Socket, Box<dyn Error>> {
        Ok(self.open("/", &[])?.0)
    }
}

/// The next message that is neither a ping nor a pong.
fn receive(socket: &mut Socket) -> Result<Message, tungstenite::Error> {
    loop {
        let message = socket.read()?;
        if !message.is_ping() && !message.is_pong() {
            return Ok(message);
        }
    }
}

fn echoed(socket: &mut Socket, message: Message) -> Outcome {
    socket.send(message.clone())?;
    let received = receive(socket)?;
    assert!(received == message, "{} bytes, but not the message that was sent", received.len());
    Ok(())
}

fn close(mut socket: Socket, frame: Option<CloseFrame>) -> Result<Option<CloseFrame>, Box<dyn Error>> {
    socket.close(frame)?;
    let mut received = None;
    loop {
        match socket.read() {
            Ok(Message::Close(frame)) => received = frame,
            Ok(_) => {}
            Err(tungstenite::Error::ConnectionClosed) => return Ok(received),
            Err(error) => return Err(error.into()),
        }
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 + (index >> 8)) as u8).collect()
}

fn text(target: &Target) -> Outcome {
    let mut socket = target.connect()?;
    for message in ["hello", "Grüße, Привет, 你好, 🦀🌊", "\0", &"x".repeat(126), &"ß".repeat(32768)]
    {
        echoed(&mut socket, Message::text(message))?;
    }
    Ok(())
}

fn binary(target: &Target) -> Outcome {
    let mut socket = target.connect()?;
    for length in [1, 125, 126, 127, 4096, 65535, 65536, 300_000] {
        echoed(&mut socket, Message::binary(pattern(length)))?;
    }
    Ok(())
}

fn empty_message(target: &Target) -> Outcome {
    let mut socket = target.connect()?;
    echoed(&mut socket, Message::text(""))?;
    echoed(&mut socket, Message::binary(Vec::new()))?;
    echoed(&mut socket, Message::text("after"))
}

fn fragmented_message(target: &Target) -> Outcome {
    let mut socket = target.connect()?;
    let whole = "Grüße, 🦀".as_bytes();
    // The border lies within a character.
    let (first, second) = whole.split_at(3);
    let frame = |payload: &[u8], data, last| {
        Message::Frame(Frame::message(payload.to_vec(), OpCode::Data(data), last))
    };
    socket.write(frame(first, Data::Text, false))?;
    socket.write(Message::Ping(b"between"[..].into()))?;
    socket.write(frame(&[], Data::Continue, false))?;
    socket.send(frame(second, Data::Continue, true))?;
    assert_eq!(socket.read()?, Message::Pong(b"between"[..].into()));
    assert_eq!(socket.read()?, Message::text("Grüße, 🦀"));

    let large = pattern(200_000);
    for (index, chunk) in large.chunks(7_000).enumerate() {
        let data = if index == 0 { Data::Binary } else { Data::Continue };
        socket.write(frame(chunk, data, (index + 1) * 7_000 >= large.len()))?;
    }
    socket.flush()?;
    assert!(receive(&mut socket)?.into_data() == large, "other bytes");
    Ok(())
}

fn ping_and_pong(target: &Target) -> Outcome {
    let mut socket = target.connect()?;
    for payload in [pattern(0), b"payload".to_vec(), pattern(125)] {
        socket.send(Message::Ping(payload.clone().into()))?;
        assert_eq!(socket.read()?, Message::Pong(payload.into()));
    }
    socket.send(Message::Pong(b"unsolicited"[..].into()))?;
    echoed(&mut socket, Message::text("after"))
}

fn many_in_flight(target: &Target) -> Outcome {
    let mut socket = target.connect()?;
    // Few enough for the socket buffers: this client does not read while it writes.
    let messages: Vec<_> =
        (0..1000).map(|number| Message::text(format!("message {number} ").repeat(number % 10))).collect();
    for message in &messages {
        socket.write(message.clone())?;
    }
    socket.flush()?;
    for message in &messages {
        assert_eq!(&receive(&mut socket)?, message);
    }
    Ok(())
}

fn largest_message(target: &Target) -> Outcome {
    let mut socket = target.connect()?;
    echoed(&mut socket, Message::binary(pattern(MESSAGE_BYTES_MAX)))?;
    echoed(&mut socket, Message::text("🦀".repeat(MESSAGE_BYTES_MAX / 4)))
}

fn close_code(target: &Target) -> Outcome {
    for (code, reason) in [(1000, ""), (1000, "done"), (3000, "registered"), (4999, &"grün".repeat(24))] {
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        let received = close(target.connect()?, Some(frame))?.ok_or("a close frame without a code")?;
        assert_eq!(u16::from(received.code), code);
        // RFC 6455 section 5.5.1: the code is echoed; the reason need not be.
        assert!(received.reason.is_empty() || received.reason == reason, "{}", received.reason);
    }
    assert_eq!(close(target.connect()?, None)?, None, "a code in answer to none");
    Ok(())
}

fn subprotocol(target: &Target) -> Outcome {
    for (offered, selected) in [(&[][..], None), (&["echo"], Some("echo")), (&["chat", "echo"], Some("echo"))]
    {
        let (mut socket, response) = target.open("/", offered)?;
        let header = response.headers().get("Sec-WebSocket-Protocol");
        assert_eq!(header.map(|value| value.to_str()).transpose()?, selected);
        echoed(&mut socket, Message::text("hello"))?;
    }
    Ok(())
}

fn rejection(target: &Target) -> Outcome {
    let Err(error) = target.open("/reject", &[]) else {
        return Err("the upgrade was accepted".into());
    };
    let Some(tungstenite::Error::Http(response)) = error.downcast_ref() else {
        return Err(error);
    };
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert!(response.body().as_ref().is_some_and(|body| !body.is_empty()), "the response has no body");
    Ok(())
}

fn deferred_accept(target: &Target) -> Outcome {
    let (mut socket, _) = target.open("/later", &[])?;
    echoed(&mut socket, Message::text("late"))
}

fn going_away(target: &Target) -> Outcome {
    let mut sockets = [target.connect()?, target.connect()?];
    echoed(&mut sockets[0], Message::text("before"))?;
    kill_process(target.server, Signal::TERM)?;
    for mut socket in sockets {
        let Message::Close(Some(frame)) = receive(&mut socket)? else {
            return Err("not a close frame with a code".into());
        };
        assert_eq!(frame.code, CloseCode::Away);
        // The close frame is answered, then the server ends the connection.
        let after = socket.read();
        assert!(after.is_err(), "{after:?} after the close frame");
    }
    Ok(())
}
