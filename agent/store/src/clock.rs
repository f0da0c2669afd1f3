//! Milliseconds to the fields that path templates print, as Flume prints them.
//!
//! Promises Java's answers for any `long`: a year beyond what time-zone tables reach keeps the offset of their end.
//! Names of days and months are English; Flume's depend on the JVM's locale.

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};

/// What `hdfs.round` does to the time before it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    None,
    /// Down to a multiple of so many seconds (1–60) within the minute.
    Seconds(u8),
    /// Within the hour, 1–60.
    Minutes(u8),
    /// Within the day, 1–24.
    Hours(u8),
}

/// A time zone as Java knows it.
#[derive(Debug, Clone)]
pub struct Zone(TimeZone);

impl Zone {
    /// The zone of the machine.
    pub fn local() -> Zone {
        Zone(TimeZone::system())
    }

    /// `None` for a name that Java does not know either; Java then means GMT.
    pub fn named(name: &str) -> Option<Zone> {
        if let Some(offset) = name.strip_prefix("GMT").and_then(parse_custom_offset) {
            return Some(Zone(TimeZone::fixed(offset)));
        }
        let name = SHORT_NAMES.iter().find(|(short, _)| *short == name).map_or(name, |(_, long)| long);
        match name {
            "GMT" | "UTC" | "Z" => Some(Zone::gmt()),
            "EST" => Some(Zone::hours(-5)),
            "MST" => Some(Zone::hours(-7)),
            "HST" => Some(Zone::hours(-10)),
            _ => TimeZone::get(name).ok().map(Zone),
        }
    }

    pub fn gmt() -> Zone {
        Zone(TimeZone::UTC)
    }

    fn hours(hours: i8) -> Zone {
        Zone(TimeZone::fixed(Offset::constant(hours)))
    }

    fn offset_seconds(&self, seconds: i64) -> i64 {
        let reachable = seconds.clamp(Timestamp::MIN.as_second() + 1, Timestamp::MAX.as_second() - 1);
        let timestamp = Timestamp::from_second(reachable).unwrap_or(Timestamp::UNIX_EPOCH);
        i64::from(self.0.to_offset(timestamp).seconds())
    }
}

/// `+5`, `+05`, `+530`, `+0530`, `+5:30`, `-05:30`, at most 23:59.
fn parse_custom_offset(text: &str) -> Option<Offset> {
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = match digits.split_once(':') {
        Some((hours, minutes)) if minutes.len() == 2 => (hours, minutes),
        Some(_) => return None,
        None if digits.len() > 2 => digits.split_at_checked(digits.len() - 2)?,
        None => (digits, "0"),
    };
    let number = |text: &str, limit: i32| {
        let digits_only = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<i32>().ok().filter(|value| digits_only && *value <= limit)
    };
    Offset::from_seconds(sign * (number(hours, 23)? * 3600 + number(minutes, 59)? * 60)).ok()
}

/// Java's three-letter names that the IANA tables do not have, or mean otherwise.
const SHORT_NAMES: [(&str, &str); 25] = [
    ("ACT", "Australia/Darwin"),
    ("AET", "Australia/Sydney"),
    ("AGT", "America/Argentina/Buenos_Aires"),
    ("ART", "Africa/Cairo"),
    ("AST", "America/Anchorage"),
    ("BET", "America/Sao_Paulo"),
    ("BST", "Asia/Dhaka"),
    ("CAT", "Africa/Harare"),
    ("CNT", "America/St_Johns"),
    ("CST", "America/Chicago"),
    ("CTT", "Asia/Shanghai"),
    ("EAT", "Africa/Addis_Ababa"),
    ("ECT", "Europe/Paris"),
    ("IET", "America/Indiana/Indianapolis"),
    ("IST", "Asia/Kolkata"),
    ("JST", "Asia/Tokyo"),
    ("MIT", "Pacific/Apia"),
    ("NET", "Asia/Yerevan"),
    ("NST", "Pacific/Auckland"),
    ("PLT", "Asia/Karachi"),
    ("PNT", "America/Phoenix"),
    ("PRT", "America/Puerto_Rico"),
    ("PST", "America/Los_Angeles"),
    ("SST", "Pacific/Guadalcanal"),
    ("VST", "Asia/Ho_Chi_Minh"),
];

/// Rounds down in the zone's local time, as Flume does.
pub fn round_down(millis: i64, rounding: Rounding, zone: &Zone) -> i64 {
    let seconds = millis.div_euclid(1000);
    let offset = zone.offset_seconds(seconds);
    let local = seconds.saturating_add(offset);
    let minute = local - local.rem_euclid(60);
    let hour = local - local.rem_euclid(3600);
    let day = local - local.rem_euclid(86_400);
    let down = |start: i64, unit: i64, step: u8| {
        let step = i64::from(step.max(1)) * unit;
        start + (local - start) / step * step
    };
    let rounded = match rounding {
        Rounding::None => return millis,
        Rounding::Seconds(step) => down(minute, 1, step),
        Rounding::Minutes(step) => down(hour, 60, step),
        Rounding::Hours(step) => down(day, 3600, step),
    };
    // The clock may have been changed between the rounded time and this one: then the offset there is another.
    let guess = rounded.saturating_sub(offset);
    rounded.saturating_sub(zone.offset_seconds(guess)).saturating_mul(1000)
}

/// A moment on the wall of a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallTime {
    pub year: i64,
    /// 1–12
    pub month: u8,
    /// 1–31
    pub day: u8,
    /// 1–366
    pub day_of_year: u16,
    /// 0 is Sunday.
    pub weekday: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
    pub offset_seconds: i64,
}

impl WallTime {
    pub fn of(millis: i64, zone: &Zone) -> WallTime {
        let seconds = millis.div_euclid(1000);
        let offset_seconds = zone.offset_seconds(seconds);
        let local = seconds.saturating_add(offset_seconds);
        let (days, in_day) = (local.div_euclid(86_400), local.rem_euclid(86_400));
        let (year, month, day) = civil_from_days(days);
        let first = days_from_civil(year, 1, 1);
        WallTime {
            year,
            month,
            day,
            day_of_year: (days - first + 1) as u16,
            weekday: (days + 4).rem_euclid(7) as u8,
            hour: (in_day / 3600) as u8,
            minute: (in_day / 60 % 60) as u8,
            second: (in_day % 60) as u8,
            offset_seconds,
        }
    }
}

/// Days since 1970 to a Gregorian date. Counts in eras of 400 years that start in March, so that a leap day is last.
fn civil_from_days(days: i64) -> (i64, u8, u8) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month as u8, day as u8)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let march_year = year - i64::from(month <= 2);
    let era = march_year.div_euclid(400);
    let year_of_era = march_year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Friday 13 April 2012, 11:11:11.123 UTC
    const THEN: i64 = 1_334_315_471_123;

    #[test]
    fn dates_agree_with_the_time_library_over_eight_thousand_years() {
        for day in (-1_400_000..2_900_000).step_by(977) {
            let date = jiff::civil::date(1970, 1, 1).checked_add(jiff::Span::new().days(day)).unwrap();
            let wall = WallTime::of(i64::from(day) * 86_400_000, &Zone::gmt());
            assert_eq!((wall.year, wall.month, wall.day), (date.year().into(), date.month() as u8, date.day() as u8));
            assert_eq!(i32::from(wall.day_of_year), i32::from(date.day_of_year()));
            assert_eq!(i32::from(wall.weekday), i32::from(date.weekday().to_sunday_zero_offset()));
        }
    }

    #[test]
    fn no_moment_of_a_long_is_out_of_reach() {
        assert_eq!(WallTime::of(i64::MAX, &Zone::gmt()).year, 292_278_994);
        assert_eq!(WallTime::of(i64::MIN, &Zone::named("Asia/Kolkata").unwrap()).month, 5);
        for rounding in [Rounding::Seconds(7), Rounding::Minutes(60), Rounding::Hours(24)] {
            round_down(i64::MIN, rounding, &Zone::gmt());
            round_down(i64::MAX, rounding, &Zone::gmt());
        }
    }

    #[test]
    fn zones_are_those_of_java() {
        let hour_in = |name: &str| Zone::named(name).map(|zone| WallTime::of(THEN, &zone).offset_seconds);
        for (name, seconds) in [
            ("GMT+05:30", 19_800),
            ("GMT+530", 19_800),
            ("GMT-7", -25_200),
            ("PST", -25_200),
            ("EST", -18_000),
            ("Asia/Kolkata", 19_800),
            ("UTC", 0),
        ] {
            assert_eq!(hour_in(name), Some(seconds), "{name}");
        }
        for unknown in ["Nonsense/Zone", "GMT+24:00", "GMT+5:3", "GMT+", "UTC+5", ""] {
            assert_eq!(hour_in(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn rounding_happens_on_the_zones_own_clock() {
        let kolkata = Zone::named("Asia/Kolkata").unwrap();
        let rounded = WallTime::of(round_down(THEN, Rounding::Hours(6), &kolkata), &kolkata);
        assert_eq!((rounded.day, rounded.hour, rounded.minute), (13, 12, 0));
        assert_eq!(round_down(THEN, Rounding::Minutes(7), &Zone::gmt()), 1_334_315_220_000);
        assert_eq!(round_down(-1, Rounding::Hours(24), &Zone::gmt()), -86_400_000);
    }

    #[test]
    fn rounding_over_a_clock_change_lands_on_the_round_hour() {
        // 27 March 2011: Berlin's clocks went from 2:00 to 3:00. 5:30 local, rounded to 12 hours, is midnight.
        let berlin = Zone::named("Europe/Berlin").unwrap();
        let half_past_five = 1_301_196_600_000;
        let rounded = WallTime::of(round_down(half_past_five, Rounding::Hours(12), &berlin), &berlin);
        assert_eq!((rounded.day, rounded.hour, rounded.minute), (27, 0, 0));
    }
}
