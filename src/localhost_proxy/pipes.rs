//! Pipes that carry data from one socket to another inside the kernel.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// The desired capacity of a pipe. A pipe that the kernel keeps smaller (`fs.pipe-user-pages-soft`) still works.
const PIPE_BYTES: usize = 256 * 1024;
/// The size of the buffer that replaces a pipe.
const BUFFER_BYTES: usize = 16 * 1024;
/// The most idle pipes that are kept open.
const MAX_IDLE: usize = 16;

/// The pipes of the process. An idle connection has none.
#[derive(Debug)]
pub struct PipePool {
    max: usize,
    state: Mutex<PoolState>,
}

#[derive(Debug, Default)]
struct PoolState {
    idle: Vec<Pipe>,
    /// The pipes that exist.
    open: usize,
    /// splice(2) does not work with these sockets here.
    useless: bool,
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// Data on its way from one socket to another: in a pipe, or in a buffer where no pipe is left.
#[derive(Debug)]
pub struct Carrier<'a> {
    pool: &'a PipePool,
    held: Held,
    /// Bytes taken from the source and not yet written.
    pending: usize,
}

#[derive(Debug)]
enum Held {
    Pipe(Pipe),
    Buffer { bytes: Vec<u8>, at: usize },
}

impl PipePool {
    /// At most `max` pipes.
    pub fn new(max: usize) -> Self {
        Self { max, state: Mutex::default() }
    }

    /// A pipe, or a buffer if there are too many pipes or descriptors in use.
    pub fn carrier(&self) -> Carrier<'_> {
        let held = self.pipe().map_or_else(|| Held::Buffer { bytes: Vec::new(), at: 0 }, Held::Pipe);
        Carrier { pool: self, held, pending: 0 }
    }

    fn pipe(&self) -> Option<Pipe> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.useless {
            return None;
        }
        if let Some(pipe) = state.idle.pop() {
            return Some(pipe);
        }
        if state.open >= self.max {
            return None;
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(i32::try_from(PIPE_BYTES).unwrap_or(i32::MAX)));
        state.open += 1;
        Some(Pipe { read, write })
    }

    /// Takes a pipe back, unless data is left in it or enough are idle.
    fn put(&self, pipe: Pipe, pending: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if pending == 0 && state.idle.len() < MAX_IDLE {
            state.idle.push(pipe);
        } else {
            state.open -= 1;
        }
    }

    fn give_up(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).useless = true;
    }
}

impl Carrier<'_> {
    /// Takes what a socket has. Returns the number of bytes; 0: its peer has closed its direction.
    ///
    /// # Errors
    /// `WouldBlock` if the socket has nothing; its failure.
    pub fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        if let Held::Pipe(pipe) = &self.held {
            let moved =
                from.try_io(Interest::READABLE, || Ok(splice(from, None, &pipe.write, None, PIPE_BYTES, flags())?));
            match moved {
                Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINVAL as i32) => {
                    self.pool.give_up();
                    self.replace_by_buffer();
                }
                moved => {
                    self.pending = *moved.as_ref().unwrap_or(&0);
                    return moved;
                }
            }
        }
        let Held::Buffer { bytes, at } = &mut self.held else { return Ok(0) };
        bytes.resize(BUFFER_BYTES, 0);
        *at = 0;
        self.pending = from.try_read(bytes)?;
        Ok(self.pending)
    }

    /// Writes all that was taken.
    ///
    /// # Errors
    /// The failure of the socket.
    pub async fn drain(&mut self, to: &TcpStream) -> io::Result<()> {
        while self.pending > 0 {
            to.writable().await?;
            let pending = self.pending;
            let moved = match &self.held {
                Held::Pipe(pipe) => {
                    to.try_io(Interest::WRITABLE, || Ok(splice(&pipe.read, None, to, None, pending, flags())?))
                }
                Held::Buffer { bytes, at } => to.try_write(&bytes[*at..*at + pending]),
            };
            match moved {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.pending -= count;
                    if let Held::Buffer { at, .. } = &mut self.held {
                        *at += count;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn replace_by_buffer(&mut self) {
        if let Held::Pipe(pipe) = std::mem::replace(&mut self.held, Held::Buffer { bytes: Vec::new(), at: 0 }) {
            self.pool.put(pipe, 1);
        }
    }
}

impl Drop for Carrier<'_> {
    fn drop(&mut self) {
        if let Held::Pipe(pipe) = std::mem::replace(&mut self.held, Held::Buffer { bytes: Vec::new(), at: 0 }) {
            self.pool.put(pipe, self.pending);
        }
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}
