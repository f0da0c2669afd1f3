//! Names of files, as Flume's two path managers give them.

use jiff::Zoned;

/// Gives each new file its name.
#[derive(Debug)]
pub(super) struct Names {
    prefix: String,
    /// With its dot, or empty.
    extension: String,
    scheme: Scheme,
    /// Of the last file.
    number: u64,
}

#[derive(Debug)]
enum Scheme {
    /// Milliseconds of the start, and a number that grows.
    Default { start_ms: i64 },
    /// The time of the roll to the second; the number grows within that second.
    RollTime { last: String },
}

impl Names {
    pub(super) fn by_start(prefix: &str, extension: &str, start_ms: i64) -> Names {
        Names::new(prefix, extension, Scheme::Default { start_ms })
    }

    pub(super) fn by_roll_time(prefix: &str, extension: &str) -> Names {
        Names::new(prefix, extension, Scheme::RollTime { last: String::new() })
    }

    fn new(prefix: &str, extension: &str, scheme: Scheme) -> Names {
        let extension = if extension.is_empty() { String::new() } else { format!(".{extension}") };
        Names { prefix: prefix.to_owned(), extension, scheme, number: 0 }
    }

    pub(super) fn next(&mut self, now: &Zoned) -> String {
        let moment = match &mut self.scheme {
            Scheme::Default { start_ms } => start_ms.to_string(),
            Scheme::RollTime { last } => {
                let moment = now.strftime("%Y%m%d%H%M%S").to_string();
                if moment != *last {
                    self.number = 0;
                    last.clone_from(&moment);
                }
                moment
            }
        };
        self.number += 1;
        format!("{}{moment}-{}{}", self.prefix, self.number, self.extension)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i8) -> Zoned {
        jiff::civil::date(2024, 2, 3).at(4, 5, second, 0).in_tz("UTC").unwrap()
    }

    #[test]
    fn files_are_numbered_from_the_start_of_the_sink() {
        let mut names = Names::by_start("", "", 1_700_000_000_000);
        assert_eq!(names.next(&at(0)), "1700000000000-1");
        assert_eq!(names.next(&at(9)), "1700000000000-2");
        assert_eq!(Names::by_start("log-", "txt", 5).next(&at(0)), "log-5-1.txt");
    }

    #[test]
    fn files_named_by_their_roll_are_numbered_within_the_second() {
        let mut names = Names::by_roll_time("p-", "log");
        assert_eq!(names.next(&at(6)), "p-20240203040506-1.log");
        assert_eq!(names.next(&at(6)), "p-20240203040506-2.log");
        assert_eq!(names.next(&at(7)), "p-20240203040507-1.log");
    }
}
