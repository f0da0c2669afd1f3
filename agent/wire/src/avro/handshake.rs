//! The two handshake records, as bytes.

use super::datum::{DatumReader, MalformedDatum, put_bytes, put_long};

pub(super) type Hash = [u8; 16];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    /// Both know each other: the call is answered, and no handshake follows on this connection.
    Both,
    /// The server knows the client and tells it about itself; otherwise as `Both`.
    Client,
    /// The server does not know the client, and has not executed the call.
    None,
}

impl Match {
    const ALL: [Match; 3] = [Match::Both, Match::Client, Match::None];
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HandshakeRequest<'a> {
    pub(super) client_hash: Hash,
    pub(super) client_text: Option<std::borrow::Cow<'a, str>>,
    pub(super) server_hash: Hash,
}

impl<'a> HandshakeRequest<'a> {
    pub(super) fn read(reader: &mut DatumReader<'a>) -> Result<HandshakeRequest<'a>, MalformedDatum> {
        let client_hash = hash(reader)?;
        let client_text = match reader.index(2)? {
            0 => None,
            _ => Some(reader.string()?),
        };
        let server_hash = hash(reader)?;
        if reader.index(2)? == 1 {
            reader.skip_map()?;
        }
        Ok(HandshakeRequest { client_hash, client_text, server_hash })
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.client_hash);
        match &self.client_text {
            None => put_long(out, 0),
            Some(text) => {
                put_long(out, 1);
                put_bytes(out, text.as_bytes());
            }
        }
        out.extend_from_slice(&self.server_hash);
        // An empty map, as Flume's client sends it.
        put_long(out, 1);
        put_long(out, 0);
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HandshakeResponse<'a> {
    pub(super) matched: Match,
    pub(super) server_text: Option<std::borrow::Cow<'a, str>>,
    pub(super) server_hash: Option<Hash>,
}

impl<'a> HandshakeResponse<'a> {
    pub(super) fn read(reader: &mut DatumReader<'a>) -> Result<HandshakeResponse<'a>, MalformedDatum> {
        let matched = Match::ALL[reader.index(3)?];
        let server_text = match reader.index(2)? {
            0 => None,
            _ => Some(reader.string()?),
        };
        let server_hash = match reader.index(2)? {
            0 => None,
            _ => Some(hash(reader)?),
        };
        if reader.index(2)? == 1 {
            reader.skip_map()?;
        }
        Ok(HandshakeResponse { matched, server_text, server_hash })
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_long(out, self.matched as i64);
        match &self.server_text {
            None => put_long(out, 0),
            Some(text) => {
                put_long(out, 1);
                put_bytes(out, text.as_bytes());
            }
        }
        match self.server_hash {
            None => put_long(out, 0),
            Some(hash) => {
                put_long(out, 1);
                out.extend_from_slice(&hash);
            }
        }
        put_long(out, 0);
    }
}

fn hash(reader: &mut DatumReader<'_>) -> Result<Hash, MalformedDatum> {
    let mut hash = [0; 16];
    hash.copy_from_slice(reader.fixed(16)?);
    Ok(hash)
}
