//! A SOCKS 5 client (RFC 1928, RFC 1929) for onion addresses: the user name says which circuit.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

/// Connects through the SOCKS port at `socks` to `host`; streams of the same `user` may share a circuit, those of others never
/// do (tor's default `IsolateSOCKSAuth`).
///
/// # Errors
/// If tor refuses or does not answer in time; the stream keeps this time as its timeout.
pub fn connect(
    socks: SocketAddr,
    user: &str,
    host: &str,
    port: u16,
    patience: Duration,
) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(socks).context("connecting to the SOCKS port")?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;

    // One method: user name and password.
    stream.write_all(&[5, 1, 2])?;
    ensure!(read(&mut stream)? == [5, 2], "the SOCKS port takes no user name");
    let mut login = vec![1];
    login.extend(counted(user)?);
    login.extend(counted("x")?);
    stream.write_all(&login)?;
    ensure!(read(&mut stream)? == [1, 0], "the SOCKS port refuses the user name");

    // CONNECT to a name.
    let mut request = vec![5, 1, 0, 3];
    request.extend(counted(host)?);
    request.extend(port.to_be_bytes());
    stream.write_all(&request)?;
    let [_, status, _, kind] = read(&mut stream).context("waiting for the circuit")?;
    ensure!(status == 0, "tor's SOCKS port answers {status}: {}", meaning(status));
    // The bound address, which tor does not fill.
    match kind {
        1 => drop(read::<6>(&mut stream)?),
        4 => drop(read::<18>(&mut stream)?),
        other => bail!("the SOCKS port answers with an address of kind {other}"),
    }
    Ok(stream)
}

fn read<const BYTES: usize>(stream: &mut TcpStream) -> Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    stream.read_exact(&mut bytes).context("reading from the SOCKS port")?;
    Ok(bytes)
}

/// The text behind its length.
fn counted(text: &str) -> Result<Vec<u8>> {
    let length = u8::try_from(text.len()).with_context(|| format!("`{text}` is too long for SOCKS"))?;
    Ok(std::iter::once(length).chain(text.bytes()).collect())
}

/// RFC 1928, section 6.
fn meaning(status: u8) -> &'static str {
    match status {
        1 => "general failure",
        2 => "not allowed",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "time to live expired",
        7 => "command not supported",
        8 => "kind of address not supported",
        _ => "unknown",
    }
}
