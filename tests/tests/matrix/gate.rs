//! Gates: a step (or the download of a step) connects to one, and waits there until it hears a word.

use std::io::Write as _;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// A port on the loopback of this machine. Its thread lives as long as this process.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    pub(crate) port: u16,
    /// What lets go on who comes.
    good: &'static str,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Those that came so far. They stay open: what a client still sends must not become a reset.
    came: Vec<TcpStream>,
    /// What everybody hears.
    word: Option<&'static str>,
}

impl Gate {
    /// A gate of a step, which goes on when it hears `go`.
    pub(crate) fn new() -> Self {
        Self::with("go")
    }

    /// A gate at which this is the word to go on.
    pub(crate) fn with(good: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = Self {
            port: listener.local_addr().unwrap().port(),
            good,
            state: Arc::default(),
        };
        let state = Arc::clone(&gate.state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(word) = state.word {
                    tell(&stream, word);
                }
                state.came.push(stream);
            }
        });
        gate
    }

    /// How many have come.
    pub(crate) fn came(&self) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.came.len()
    }

    /// Lets everybody go on.
    pub(crate) fn open(&self) {
        self.say(self.good);
    }

    /// Tells everybody who came this word, and everybody who will.
    pub(crate) fn say(&self, word: &'static str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.word = Some(word);
        for stream in &state.came {
            tell(stream, word);
        }
    }
}

/// The other end may be gone already.
fn tell(mut stream: &TcpStream, word: &str) {
    stream.write_all(word.as_bytes()).ok();
    stream.shutdown(Shutdown::Write).ok();
}
