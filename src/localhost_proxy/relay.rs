//! Moves data between a client and an endpoint, in both directions.

use std::io;
use std::net::Shutdown;

use socket2::SockRef;
use tokio::net::TcpStream;

use super::pipes::PipePool;

/// Moves data until both sides have closed their direction. Each half-close is passed on to the other side.
///
/// # Errors
/// The first failure of a socket; the other direction is given up with it.
pub async fn relay(client: &TcpStream, backend: &TcpStream, pipes: &PipePool) -> io::Result<()> {
    tokio::try_join!(pump(client, backend, pipes), pump(backend, client, pipes)).map(drop)
}

async fn pump(from: &TcpStream, to: &TcpStream, pipes: &PipePool) -> io::Result<()> {
    loop {
        from.readable().await?;
        if !carry(from, to, pipes).await? {
            break;
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
