//! The alternate screen of a terminal, which is left in order however the command ends.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, raise};

/// Enters the alternate screen and hides the cursor; the normal screen stays as it is below.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// Resets colours, shows the cursor and goes back to the normal screen.
const LEAVE: &str = "\x1b[0m\x1b[?25h\x1b[?1049l";

/// The end of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The time is over.
    Elapsed,
    /// The terminal has another size, or the command went on after a stop: draw again.
    Redraw,
    /// SIGINT, SIGTERM or SIGHUP.
    Stop,
}

/// The alternate screen; dropped, the normal one comes back.
#[derive(Debug)]
pub struct Screen {
    signals: Receiver<Signal>,
}

impl Screen {
    /// Enters the alternate screen. From here on signals are events, in this and in later threads.
    ///
    /// # Errors
    /// If the kernel refuses to block signals or to start a thread, or the terminal is gone.
    pub fn enter() -> Result<Self, String> {
        let signals =
            SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGTSTP, Signal::SIGWINCH]);
        signals.thread_block().map_err(|error| format!("cannot block signals: {error}"))?;
        let (sender, receiver) = channel();
        let waiter = thread::Builder::new().name("signals".to_owned()).spawn(move || forward(&signals, &sender));
        waiter.map_err(|error| format!("cannot start a thread: {error}"))?;
        put(ENTER).map_err(|error| format!("cannot write to the terminal: {error}"))?;
        Ok(Self { signals: receiver })
    }

    /// Draws a text over the last one, without an empty screen in between.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn draw(&self, text: &str) -> io::Result<()> {
        // To the top left; what is left of each line and below the text is cleared.
        put(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")))
    }

    /// Waits until a time, or for a signal.
    pub fn wait(&self, until: Instant) -> Event {
        match self.signals.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) => Event::Elapsed,
            Ok(Signal::SIGWINCH) => Event::Redraw,
            Ok(Signal::SIGTSTP) => {
                // The shell gets its screen for as long as the command is stopped.
                let _ = put(LEAVE);
                let _ = raise(Signal::SIGSTOP);
                let _ = put(ENTER);
                Event::Redraw
            }
            Ok(_) | Err(RecvTimeoutError::Disconnected) => Event::Stop,
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = put(LEAVE);
    }
}

/// Forwards signals. A second one to end the command ends it at once, where a read of the kernel or the API server hangs.
fn forward(signals: &SigSet, sender: &Sender<Signal>) {
    let mut is_ending = false;
    while let Ok(signal) = signals.wait() {
        let ends = matches!(signal, Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP);
        if ends && is_ending {
            let _ = put(LEAVE);
            std::process::exit(0);
        }
        is_ending |= ends;
        if sender.send(signal).is_err() {
            return;
        }
    }
}

fn put(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Sleeps until a time.
pub fn sleep_until(until: Instant) {
    thread::sleep(until.checked_duration_since(Instant::now()).unwrap_or(Duration::ZERO));
}
