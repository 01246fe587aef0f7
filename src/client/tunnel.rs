//! Connections through a proxy: HTTP `CONNECT` (RFC 9110, 9.3.6) and SOCKS5 (RFC 1928, 1929).

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::server_url;

/// The largest response head to `CONNECT`.
const MAX_RESPONSE_BYTES: usize = 16 * 1024;

/// Makes an HTTP proxy connect to `target` (`host:port`).
///
/// # Errors
/// The proxy refuses, or closes the connection.
pub async fn connect<S>(stream: &mut S, target: &str, credentials: Option<&(String, String)>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let authorization = credentials.map_or(String::new(), |(name, password)| {
        let encoded = openssl::base64::encode_block(format!("{name}:{password}").as_bytes());
        format!("Proxy-Authorization: Basic {encoded}\r\n")
    });
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    // Byte by byte: bytes after the response are the server's.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() == MAX_RESPONSE_BYTES {
            return Err(io::Error::other("the answer to CONNECT has no end"));
        }
        answer.push(stream.read_u8().await?);
    }
    let first = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let first = String::from_utf8_lossy(first);
    match first.split(' ').nth(1) {
        Some(code) if code.len() == 3 && code.starts_with('2') => Ok(()),
        _ => Err(io::Error::other(format!("CONNECT was answered {first:?}"))),
    }
}

/// Makes a SOCKS5 proxy resolve and connect to a host.
///
/// # Errors
/// The proxy refuses, or violates the protocol.
pub async fn socks5<S>(
    stream: &mut S,
    (host, port): (&str, u16),
    credentials: Option<&(String, String)>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    const NO_AUTHENTICATION: u8 = 0;
    const PASSWORD: u8 = 2;
    let method = if credentials.is_some() { PASSWORD } else { NO_AUTHENTICATION };
    stream.write_all(&[5, 1, method]).await?;
    let mut choice = [0; 2];
    stream.read_exact(&mut choice).await?;
    if choice != [5, method] {
        return Err(io::Error::other(format!("the SOCKS5 proxy does not accept our authentication: {choice:?}")));
    }
    if let Some((name, password)) = credentials {
        let mut request = vec![1];
        [name, password].iter().try_for_each(|text| push_text(&mut request, text))?;
        stream.write_all(&request).await?;
        stream.read_exact(&mut choice).await?;
        if choice[1] != 0 {
            return Err(io::Error::other("the SOCKS5 proxy refuses user name and password"));
        }
    }
    let mut request = vec![5, 1, 0];
    match server_url::ip(host) {
        Some(std::net::IpAddr::V4(address)) => {
            request.push(1);
            request.extend(address.octets());
        }
        Some(std::net::IpAddr::V6(address)) => {
            request.push(4);
            request.extend(address.octets());
        }
        None => {
            request.push(3);
            push_text(&mut request, host)?;
        }
    }
    request.extend(port.to_be_bytes());
    stream.write_all(&request).await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    if answer[1] != 0 {
        return Err(io::Error::other(format!("the SOCKS5 proxy cannot connect: reply {}", answer[1])));
    }
    // The bound address is not used.
    let length = match answer[3] {
        1 => 4,
        4 => 16,
        _ => usize::from(stream.read_u8().await?),
    };
    stream.read_exact(&mut vec![0; length + 2]).await?;
    Ok(())
}

fn push_text(request: &mut Vec<u8>, text: &str) -> io::Result<()> {
    let length = u8::try_from(text.len()).map_err(|_| io::Error::other("SOCKS5 takes no more than 255 characters"))?;
    request.push(length);
    request.extend(text.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The request that a proxy with this response receives, and the result.
    async fn asked(answer: &'static [u8], socks: bool) -> (Vec<u8>, io::Result<()>) {
        let (mut ours, mut theirs) = tokio::io::duplex(4096);
        theirs.write_all(answer).await.expect("room");
        let credentials = Some(("me".to_owned(), "secret".to_owned()));
        let result = match socks {
            true => socks5(&mut ours, ("api", 6443), credentials.as_ref()).await,
            false => connect(&mut ours, "api:6443", credentials.as_ref()).await,
        };
        drop(ours);
        let mut request = Vec::new();
        theirs.read_to_end(&mut request).await.expect("a request");
        (request, result)
    }

    #[tokio::test]
    async fn connect_names_the_target_and_takes_only_2xx() {
        let (request, result) = asked(b"HTTP/1.1 200 Connection established\r\nA: b\r\n\r\n", false).await;
        let expected = "CONNECT api:6443 HTTP/1.1\r\nHost: api:6443\r\nProxy-Authorization: Basic bWU6c2VjcmV0\r\n\r\n";
        assert_eq!((String::from_utf8_lossy(&request).as_ref(), result.is_ok()), (expected, true));
        for answer in [b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n".as_slice(), b"SSH-2.0\r\n\r\n"] {
            assert!(asked(answer, false).await.1.is_err());
        }
    }

    #[tokio::test]
    async fn socks5_gives_the_name_to_the_proxy() {
        let (request, result) = asked(b"\x05\x02\x01\x00\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50", true).await;
        assert_eq!(request, b"\x05\x01\x02\x01\x02me\x06secret\x05\x01\x00\x03\x03api\x19\x2b");
        result.expect("a connection");
        for answer in [b"\x05\xff".as_slice(), b"\x05\x02\x01\x01", b"\x05\x02\x01\x00\x05\x05\x00\x01"] {
            assert!(asked(answer, true).await.1.is_err());
        }
    }
}
