//! From requests to events: Flume's JSONHandler and BLOBHandler.

use std::borrow::Cow;

use channel::EventBatch;
use hyper::StatusCode;
use wire::charset::Charset;
use wire::json::{JsonError, read_events};

use super::session::Refusal;
use crate::component::{Refused, Settings};

pub(super) const JSON_CLASS: &str = "org.apache.flume.source.http.JSONHandler";
pub(super) const BLOB_CLASS: &str = "org.apache.flume.source.http.BLOBHandler";

/// Headers of an event that come from a query; a URI is limited too, and this keeps looking for doubles cheap.
const PARAMETERS_MAX: usize = 1000;

/// What turns a request into events.
#[derive(Debug)]
pub(super) enum Handler {
    Json,
    /// The whole body is one event, whose headers are the query's parameters.
    Blob {
        mandatory: Vec<String>,
    },
}

impl Handler {
    pub(super) fn read(settings: &Settings) -> Result<Handler, Refused> {
        let class = settings.text("handler");
        match class.trim() {
            JSON_CLASS => Ok(Handler::Json),
            BLOB_CLASS => {
                let mandatory = java_split(settings.text_opt("handler.mandatoryParameters").unwrap_or_default());
                if mandatory.iter().any(String::is_empty) {
                    settings.warn(
                        "handler.mandatoryParameters",
                        "without a name in it (absent, or an empty place in the list), every request is refused that \
                         has no parameter with an empty name, as in Flume; list the parameters, or a single comma for none",
                    );
                }
                Ok(Handler::Blob { mandatory })
            }
            other => {
                Err(settings
                    .refuse("handler", format!("{other} is not built; there are {JSON_CLASS} and {BLOB_CLASS}")))
            }
        }
    }

    pub(super) fn events(
        &self,
        content_type: Option<&str>,
        query: Option<&str>,
        body: &[u8],
    ) -> Result<EventBatch, Refusal> {
        match self {
            Handler::Json => json_events(content_type, body),
            Handler::Blob { mandatory } => blob_event(mandatory, query.unwrap_or_default(), body),
        }
    }
}

fn json_events(content_type: Option<&str>, body: &[u8]) -> Result<EventBatch, Refusal> {
    // Flume reads a request that names neither a charset nor a JSON type as ISO 8859-1, and so garbles what its own
    // guide promises to read as UTF-8.
    let charset = match content_type.and_then(charset_of) {
        None => Charset::UTF_8,
        Some(name) if name.eq_ignore_ascii_case("utf-8") => Charset::UTF_8,
        Some(name) if name.eq_ignore_ascii_case("utf-16") => Charset::UTF_16,
        Some(name) if name.eq_ignore_ascii_case("utf-32") => Charset::UTF_32,
        Some(_) => {
            let why = "JSON handler supports UTF-8, UTF-16 and UTF-32 only.";
            return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why));
        }
    };
    read_events(&charset.decode_lossy(body), charset).map_err(|error| match error {
        JsonError::Syntax { .. } => Refusal::new(
            StatusCode::BAD_REQUEST,
            format!("Bad request from client. Request has invalid JSON Syntax: {error}"),
        ),
        JsonError::NotEvents(_) => {
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("The request holds no events: {error}"))
        }
    })
}

/// The `charset` parameter of a content type.
fn charset_of(content_type: &str) -> Option<&str> {
    content_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let value = value.trim().trim_matches('"').trim();
        (name.trim().eq_ignore_ascii_case("charset") && !value.is_empty()).then_some(value)
    })
}

fn blob_event(mandatory: &[String], query: &str, body: &[u8]) -> Result<EventBatch, Refusal> {
    let mut headers: Vec<(Cow<'_, str>, Cow<'_, str>)> = Vec::new();
    for (name, value) in parameters(query) {
        if headers.iter().any(|(known, _)| *known == name) {
            continue;
        }
        if headers.len() == PARAMETERS_MAX {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, format!("more than {PARAMETERS_MAX} parameters")));
        }
        headers.push((name, value));
    }
    if let Some(missing) = mandatory.iter().find(|name| !headers.iter().any(|(known, _)| known == *name)) {
        let missing: String = missing.chars().filter(|letter| !letter.is_control()).collect();
        let why = format!("Please specify {missing} parameter in the request.");
        return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why));
    }
    let mut batch = EventBatch::with_capacity(1, body.len() + query.len());
    batch.push_distinct(headers.iter().map(|(name, value)| (name.as_ref(), value.as_ref())), body);
    Ok(batch)
}

/// The parameters of a query as servlets give them: `+` is a blank, `%` with two digits a byte of UTF-8.
fn parameters(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').filter(|part| !part.is_empty()).map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decoded(name), decoded(value))
    })
}

fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        match (first, after) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit = |digit: &u8| char::from(*digit).to_digit(16).unwrap_or(0) as u8;
                bytes.push(digit(high) << 4 | digit(low));
                rest = after;
            }
            _ => bytes.push(*first),
        }
    }
    Cow::Owned(Charset::UTF_8.decode_lossy(&bytes).into_owned())
}

/// `String.split(",")`: empty places count, but not those at the end; a text without a comma is one place.
fn java_split(list: &str) -> Vec<String> {
    let mut places: Vec<String> = list.split(',').map(str::to_owned).collect();
    while places.len() > 1 && places.last().is_some_and(String::is_empty) {
        places.pop();
    }
    if list.contains(',') && places == [""] {
        places.clear();
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_charset_is_found_among_the_parameters_of_a_content_type() {
        for (content_type, charset) in [
            ("application/json", None),
            ("application/json; charset=UTF-16", Some("UTF-16")),
            ("application/json;a=b; Charset = \"utf-8\" ", Some("utf-8")),
            ("application/json; charset=", None),
            ("charset=x", None),
        ] {
            assert_eq!(charset_of(content_type), charset, "{content_type}");
        }
    }

    #[test]
    fn lists_are_split_as_java_splits_them() {
        for (list, places) in [
            ("", vec![""]),
            (",", vec![]),
            ("id", vec!["id"]),
            ("id,", vec!["id"]),
            (",id", vec!["", "id"]),
            ("a, b", vec!["a", " b"]),
        ] {
            assert_eq!(java_split(list), places, "{list:?}");
        }
    }

    #[test]
    fn parameters_of_a_query_become_headers_the_first_of_a_name_wins() {
        let batch = blob_event(&["id".to_owned()], "id=1&id=2&a+b=%C3%BC%zz%&flag&&=x", b"body").unwrap();
        let headers: Vec<_> = batch.get(0).headers().collect();
        assert_eq!(headers, [("id", "1"), ("a b", "ü%zz%"), ("flag", ""), ("", "x")]);
        assert_eq!(batch.get(0).body(), b"body");
        let many: String = (0..=PARAMETERS_MAX).map(|number| format!("{number}&")).collect();
        assert_eq!(blob_event(&[], &many, b"").unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
