//! Events as Flume's `JSONHandler` reads them: an array of `{"headers": {name: text}, "body": text}`.
//!
//! Flume reads JSON with Gson in its lenient mode, and senders rely on it: comments, single quotes, unquoted names and
//! texts, `;` for `,` and `=` or `=>` for `:`, numbers and truth values as texts, headers as an array of pairs, unknown
//! members of any form. What Gson refuses is refused, and [`JsonError`] keeps apart what Flume answers with 400 and
//! with 500. Depth, and the headers of one event, have limits; the length of the text is the caller's to limit.
//!
//! A header whose value is `null` is left out. Flume accepts it, and then no Avro writer can write the event.

use std::borrow::Cow;
use std::collections::HashMap;

use channel::EventBatch;

use crate::charset::Charset;

mod reader;

use reader::{BROKEN_ESCAPE, Reader, Token};

/// Most headers of one event. Gson has no limit; beyond this an event is an attack on the memory of every hop.
pub const EVENT_HEADERS_MAX: usize = 4096;

/// Why a request holds no events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The sender's mistake, as Gson sees it: 400.
    #[error("{what} at byte {at}")]
    Syntax { what: &'static str, at: usize },
    /// JSON, but not events. Gson lets it pass, and Flume fails on it later: 500.
    #[error("{0}")]
    NotEvents(&'static str),
}

/// Reads the events of a request. Bodies are encoded in `charset` again, as Flume does.
pub fn read_events(text: &str, charset: Charset) -> Result<EventBatch, JsonError> {
    let mut reader = Reader::new(text);
    let mut batch = EventBatch::with_capacity(text.len() / 64, text.len());
    let mut event = EventParts::default();
    let mut null_event = false;
    match reader.first()? {
        None => return Err(JsonError::NotEvents("the request is empty")),
        // Gson looks no further.
        Some(Token::Null) => return Err(JsonError::NotEvents("the request is null, not an array of events")),
        Some(Token::BeginArray) => {}
        Some(_) => return Err(reader.error("expected an array of events")),
    }
    loop {
        match reader.next()? {
            Token::EndArray => break,
            Token::Null => null_event = true,
            Token::BeginObject => {
                event.read(&mut reader, lone_surrogate(charset))?;
                let body = charset.encode(event.body.as_deref().unwrap_or_default());
                batch.push_distinct(event.headers.iter(), &body);
            }
            _ => return Err(reader.error("expected an event, an object")),
        }
    }
    reader.end()?;
    if null_event {
        return Err(JsonError::NotEvents("an event is null, or a comma has nothing after it"));
    }
    Ok(batch)
}

/// What Java's encoder puts in the place of half a surrogate pair.
fn lone_surrogate(charset: Charset) -> char {
    if charset == Charset::UTF_8 { '?' } else { '\u{fffd}' }
}

/// One event under construction, reused for the next.
#[derive(Default)]
struct EventParts<'a> {
    headers: Headers<'a>,
    body: Option<Cow<'a, str>>,
}

impl<'a> EventParts<'a> {
    /// Reads the members of an event, after its brace. Where one comes twice, the last one counts.
    fn read(&mut self, reader: &mut Reader<'a>, lone: char) -> Result<(), JsonError> {
        self.headers.clear();
        self.body = None;
        loop {
            let name = match reader.next()? {
                Token::EndObject => return Ok(()),
                Token::Text(name) => name,
                Token::BrokenText => return Err(BROKEN_ESCAPE),
                _ => return Err(reader.error("expected a name")),
            };
            match name.get('?').as_ref() {
                "body" => self.body = read_text(reader, lone)?,
                "headers" => self.headers.read(reader)?,
                _ => reader.skip_value()?,
            }
        }
    }
}

/// A text, or anything that Gson takes for one; `None` for null.
fn read_text<'a>(reader: &mut Reader<'a>, lone: char) -> Result<Option<Cow<'a, str>>, JsonError> {
    match reader.next()? {
        Token::Text(text) => Ok(Some(text.get(lone))),
        Token::Flag(true) => Ok(Some(Cow::Borrowed("true"))),
        Token::Flag(false) => Ok(Some(Cow::Borrowed("false"))),
        Token::Null => Ok(None),
        Token::BrokenText => Err(BROKEN_ESCAPE),
        _ => Err(reader.error("expected a text")),
    }
}

/// Distinct names, in the order in which they came.
#[derive(Default)]
struct Headers<'a> {
    entries: Vec<(Cow<'a, str>, Option<Cow<'a, str>>)>,
    /// Where each name is, once there are too many to look through.
    places: HashMap<Cow<'a, str>, usize>,
    present: Vec<usize>,
}

const LOOK_THROUGH_MAX: usize = 16;

impl<'a> Headers<'a> {
    fn clear(&mut self) {
        self.entries.clear();
        self.places.clear();
        self.present.clear();
    }

    fn read(&mut self, reader: &mut Reader<'a>) -> Result<(), JsonError> {
        self.clear();
        match reader.next()? {
            Token::Null => return Ok(()),
            Token::BeginObject => loop {
                match reader.next()? {
                    Token::EndObject => break,
                    Token::Text(name) => {
                        let value = read_text(reader, '?')?;
                        self.put(reader, name.get('?'), value)?;
                    }
                    Token::BrokenText => return Err(BROKEN_ESCAPE),
                    _ => return Err(reader.error("expected the name of a header")),
                }
            },
            // Gson's form for maps whose keys are no texts; it reads it for others too.
            Token::BeginArray => loop {
                match reader.next()? {
                    Token::EndArray => break,
                    Token::BeginArray => {
                        let name = read_text(reader, '?')?;
                        let value = read_text(reader, '?')?;
                        let name = name.ok_or(JsonError::NotEvents("the name of a header is null"))?;
                        self.put(reader, name, value)?;
                        if reader.next()? != Token::EndArray {
                            return Err(reader.error("expected the end of a header's pair"));
                        }
                    }
                    _ => return Err(reader.error("expected a header as a pair")),
                }
            },
            _ => return Err(reader.error("expected headers, an object")),
        }
        self.present.extend((0..self.entries.len()).filter(|index| self.entries[*index].1.is_some()));
        Ok(())
    }

    fn put(&mut self, reader: &Reader<'a>, name: Cow<'a, str>, value: Option<Cow<'a, str>>) -> Result<(), JsonError> {
        let count = self.entries.len();
        if count == LOOK_THROUGH_MAX {
            self.places = self.entries.iter().enumerate().map(|(index, (name, _))| (name.clone(), index)).collect();
        }
        let place = if count < LOOK_THROUGH_MAX {
            self.entries.iter().position(|(known, _)| *known == name)
        } else {
            self.places.get(&name).copied()
        };
        match place {
            Some(place) if self.entries[place].1.is_some() => Err(reader.error("a header comes twice")),
            Some(place) => {
                self.entries[place].1 = value;
                Ok(())
            }
            None if count == EVENT_HEADERS_MAX => Err(reader.error("too many headers in one event")),
            None => {
                if count >= LOOK_THROUGH_MAX {
                    self.places.insert(name.clone(), count);
                }
                self.entries.push((name, value));
                Ok(())
            }
        }
    }

    /// The headers that have a value.
    fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.present.iter().map(|index| {
            let (name, value) = &self.entries[*index];
            (name.as_ref(), value.as_deref().unwrap_or_default())
        })
    }
}

#[cfg(test)]
#[path = "json/tests.rs"]
mod tests;
