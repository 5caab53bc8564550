//! A whole exchange: any bytes of an endpoint for a response. The client gets responses and nothing else, and the next
//! request gets none of those bytes.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;

use super::http_balancer::{self, Answer, Asked, find};

/// What the endpoint says next.
static SAID: Mutex<Vec<u8>> = Mutex::new(Vec::new());

thread_local! {
    static BALANCER: RefCell<Option<SocketAddr>> = const { RefCell::new(None) };
}

/// Answers `/clean` as it should be, everything else with what is to be said.
fn endpoint(mut stream: TcpStream) {
    let (mut input, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        while let Some(end) = find(&input, b"\r\n\r\n") {
            let is_clean = input.starts_with(b"GET /clean ");
            input.drain(..end + 4);
            let said = match is_clean {
                true => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclean".to_vec(),
                false => SAID.lock().expect("nobody panics with it").clone(),
            };
            // Some go at once, some stay and say nothing more.
            if stream.write_all(&said).is_err() || !is_clean && said.len() % 2 == 0 {
                let _ = stream.shutdown(Shutdown::Write);
                return;
            }
        }
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => input.extend_from_slice(&buffer[..n]),
            _ => return,
        }
    }
}

fn start() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || endpoint(stream));
        }
    });
    http_balancer::start(address)
}

fn ask(address: SocketAddr, paths: &[&str]) -> Result<Vec<Answer>, String> {
    let mut stream = TcpStream::connect(address).expect("it listens");
    for path in paths {
        // It may close before all is written.
        let _ = stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n").as_bytes());
    }
    let mut got = Vec::new();
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut got);
    http_balancer::answers(&got, Asked::Get).map_err(|error| format!("{error}, in {}", got.escape_ascii()))
}

pub fn run(input: &[u8]) {
    let address = BALANCER.with_borrow_mut(|known| *known.get_or_insert_with(start));
    *SAID.lock().expect("nobody panics with it") = input.to_vec();
    match ask(address, &["/any", "/clean"]) {
        Err(error) => panic!("the client was sent {error}"),
        Ok(answers) => {
            assert!(answers.len() <= 2, "there are more answers than requests: {answers:?}");
            assert!(answers.get(1).is_none_or(|second| is_clean(second) || is_late(second)), "{answers:?}");
        }
    }
    let is_in_time = |next: &Result<Vec<Answer>, String>| match next.as_deref() {
        Ok([]) => false,
        Ok([answer]) => !is_late(answer),
        _ => true,
    };
    let next = (0..100).map(|_| ask(address, &["/clean"])).find(is_in_time);
    let is_answered = matches!(&next, Some(Ok(answers)) if answers.iter().all(is_clean));
    assert!(is_answered, "the next request is answered {next:?}");
}

fn is_clean(answer: &Answer) -> bool {
    *answer == Answer { status: 200, body: b"clean".to_vec(), is_whole: true }
}

/// The machine was too busy for the balancer's short patience, which may also close before anything is said.
fn is_late(answer: &Answer) -> bool {
    matches!(answer.status, 408 | 503 | 504)
}
