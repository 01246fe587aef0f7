//! Moves data between a client and an endpoint, in both directions.

use std::io;
use std::net::Shutdown;

use socket2::SockRef;
use tokio::net::TcpStream;

use super::pipes::PipePool;

/// So often one direction of a connection moves data, at most 256 KiB each time, before it is another's turn.
const TURN: usize = 16;

/// Moves data until both sides have closed their direction. Each half-close is passed on to the other side.
///
/// # Errors
/// The first failure of a socket; the other direction is given up with it.
pub async fn relay(client: &TcpStream, backend: &TcpStream, pipes: &PipePool) -> io::Result<()> {
    tokio::try_join!(pump(client, backend, pipes), pump(backend, client, pipes)).map(drop)
}

async fn pump(from: &TcpStream, to: &TcpStream, pipes: &PipePool) -> io::Result<()> {
    for moved in 1_usize.. {
        from.readable().await?;
        if !carry(from, to, pipes).await? {
            break;
        }
        // Waiting for a socket that is ready returns at once and takes nothing from tokio's budget for a task, so a fast
        // transfer would keep the thread from all else.
        if moved % TURN == 0 {
            tokio::task::yield_now().await;
        }
    }
    match SockRef::from(to).shutdown(Shutdown::Write) {
        // The other side has closed meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        outcome => outcome,
    }
}

/// Moves what is there. Returns whether more may come.
async fn carry(from: &TcpStream, to: &TcpStream, pipes: &PipePool) -> io::Result<bool> {
    let mut carrier = pipes.carrier();
    match carrier.fill(from) {
        Ok(0) => Ok(false),
        Ok(_) => carrier.drain(to).await.map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}
