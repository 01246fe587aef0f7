//! Connections to the probed Service's cluster IP.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::load::{CLUSTER_IP, ENDPOINTS, PORT};

/// How long a connection on loopback may take before no rule handles it.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(100);

/// The pods of the two alternating endpoints.
#[derive(Debug)]
pub struct Pods([TcpListener; 2]);

impl Pods {
    /// Listens; called inside the namespace.
    pub fn listen() -> Self {
        Self(ENDPOINTS.map(|ip| {
            let listener = TcpListener::bind((ip, PORT)).expect("the endpoint's address is on lo");
            listener.set_nonblocking(true).expect("a socket that does not block");
            listener
        }))
    }

    /// Connects until the endpoint of `turn` answers, one of ten. Returns the time, or `None` at `deadline` or if
    /// `give_up` returns true. Called inside the namespace.
    pub fn wait(
        &self,
        turn: usize,
        deadline: Instant,
        pause: Duration,
        mut give_up: impl FnMut() -> bool,
    ) -> Option<Instant> {
        let address = SocketAddr::from((CLUSTER_IP, 80));
        for attempt in 0_u32.. {
            let connected = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).is_ok();
            let now = Instant::now();
            if connected && self.accepted(turn) {
                return Some(now);
            }
            if now > deadline || give_up() {
                return None;
            }
            // Ten tries in a row find the pod more often than not.
            if attempt % 10 == 9 {
                sleep(pause);
            }
        }
        None
    }

    /// Whether the pod of this turn has a connection; the other's are dropped.
    fn accepted(&self, turn: usize) -> bool {
        let mut any = [false; 2];
        for (listener, any) in self.0.iter().zip(&mut any) {
            loop {
                match listener.accept() {
                    Ok(_) => *any = true,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
        any[turn]
    }
}
