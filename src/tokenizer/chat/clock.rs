//! `strftime` over UTC, for `strftime_now` in templates.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const SECONDS_PER_DAY: i64 = 86_400;

/// A moment of the proleptic Gregorian calendar in UTC.
struct Moment {
    year: i64,
    /// 0..12
    month: usize,
    /// 1..=31
    day: i64,
    /// 1..=366
    day_of_year: i64,
    /// 0..7, Sunday is 0
    weekday: usize,
    hour: i64,
    minute: i64,
    second: i64,
    microsecond: u32,
}

impl Moment {
    fn new(time: SystemTime) -> Moment {
        // Clamped to the years 1..=9999, which Python's datetime has too.
        let (seconds, microsecond) = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_micros()),
            Err(before) => (i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s), 0),
        };
        let seconds = seconds.clamp(-62_135_596_800, 253_402_300_799);
        let days = seconds.div_euclid(SECONDS_PER_DAY);
        let of_day = seconds.rem_euclid(SECONDS_PER_DAY);
        let (mut year, mut rest) = (1970, days);
        // Whole 400-year cycles first, then at most 400 single years.
        year += rest.div_euclid(146_097) * 400;
        rest = rest.rem_euclid(146_097);
        while rest >= year_days(year) {
            rest -= year_days(year);
            year += 1;
        }
        let day_of_year = rest + 1;
        let mut month = 0;
        while rest >= month_days(year, month) {
            rest -= month_days(year, month);
            month += 1;
        }
        Moment {
            year,
            month,
            day: rest + 1,
            day_of_year,
            // 1970-01-01 was a Thursday.
            weekday: (days + 4).rem_euclid(7) as usize,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
            microsecond,
        }
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn year_days(year: i64) -> i64 {
    if is_leap(year) { 366 } else { 365 }
}

fn month_days(year: i64, month: usize) -> i64 {
    match month {
        1 if is_leap(year) => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

/// `time` in UTC by the C library's `strftime`, in the C locale. A directive that is not known stays as it is.
pub fn strftime(time: SystemTime, format: &str) -> String {
    let mut out = String::new();
    let mut chars = format.chars();
    let t = Moment::new(time);
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        // glibc's flag that drops the padding.
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let width = |digits: usize| if unpadded { 1 } else { digits };
        let hour12 = (t.hour + 11) % 12 + 1;
        let meridiem = if t.hour < 12 { "AM" } else { "PM" };
        let (day_name, month_name) = (DAYS[t.weekday], MONTHS[t.month]);
        // Days since the first Sunday (Monday) of the year decide the week.
        let week = |first: i64| (t.day_of_year + 6 - (t.weekday as i64 - first).rem_euclid(7)) / 7;
        // Writing to a String cannot fail.
        let _ = match directive {
            Some('Y') => write!(out, "{}", t.year),
            Some('y') => write!(out, "{:0w$}", t.year.rem_euclid(100), w = width(2)),
            Some('m') => write!(out, "{:0w$}", t.month + 1, w = width(2)),
            Some('B') => write!(out, "{month_name}"),
            Some('b' | 'h') => write!(out, "{}", &month_name[..3]),
            Some('d') => write!(out, "{:0w$}", t.day, w = width(2)),
            Some('e') => write!(out, "{:w$}", t.day, w = width(2)),
            Some('j') => write!(out, "{:0w$}", t.day_of_year, w = width(3)),
            Some('A') => write!(out, "{day_name}"),
            Some('a') => write!(out, "{}", &day_name[..3]),
            Some('w') => write!(out, "{}", t.weekday),
            Some('u') => write!(out, "{}", (t.weekday + 6) % 7 + 1),
            Some('U') => write!(out, "{:0w$}", week(0), w = width(2)),
            Some('W') => write!(out, "{:0w$}", week(1), w = width(2)),
            Some('H') => write!(out, "{:0w$}", t.hour, w = width(2)),
            Some('I') => write!(out, "{hour12:0w$}", w = width(2)),
            Some('M') => write!(out, "{:0w$}", t.minute, w = width(2)),
            Some('S') => write!(out, "{:0w$}", t.second, w = width(2)),
            Some('f') => write!(out, "{:06}", t.microsecond),
            Some('p') => write!(out, "{meridiem}"),
            Some('F') => write!(out, "{}-{:02}-{:02}", t.year, t.month + 1, t.day),
            Some('T' | 'X') => write!(out, "{:02}:{:02}:{:02}", t.hour, t.minute, t.second),
            Some('R') => write!(out, "{:02}:{:02}", t.hour, t.minute),
            Some('D' | 'x') => write!(out, "{:02}/{:02}/{:02}", t.month + 1, t.day, t.year.rem_euclid(100)),
            Some('c') => write!(
                out,
                "{} {} {:2} {:02}:{:02}:{:02} {}",
                &day_name[..3],
                &month_name[..3],
                t.day,
                t.hour,
                t.minute,
                t.second,
                t.year
            ),
            // datetime.now() is naive: Python prints nothing for its zone.
            Some('z' | 'Z') => Ok(()),
            Some('n') => writeln!(out),
            Some('t') => write!(out, "\t"),
            Some('%') => write!(out, "%"),
            Some(other) => write!(out, "%{}{other}", if unpadded { "-" } else { "" }),
            None => write!(out, "%{}", if unpadded { "-" } else { "" }),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: i64, format: &str) -> String {
        let offset = Duration::from_secs(seconds.unsigned_abs());
        strftime(if seconds < 0 { UNIX_EPOCH - offset } else { UNIX_EPOCH + offset }, format)
    }

    /// The expected texts are those of Python's `datetime.fromtimestamp(seconds, utc).strftime`.
    #[test]
    fn known_moments() {
        assert_eq!(at(0, "%d %b %Y %H:%M:%S %A %j"), "01 Jan 1970 00:00:00 Thursday 001");
        assert_eq!(at(1_709_210_096, "%Y-%m-%d %I:%M %p %a %y %B"), "2024-02-29 12:34 PM Thu 24 February");
        assert_eq!(at(951_782_400, "%F %j"), "2000-02-29 060");
        assert_eq!(at(4_107_542_400, "%F %U %W"), "2100-03-01 09 09");
        assert_eq!(at(-1, "%F %T"), "1969-12-31 23:59:59");
        assert_eq!(at(1_704_067_199, "%-d.%-m.%Y %e %% %Q %"), "31.12.2023 31 % %Q %");
        assert_eq!(at(1_735_689_600, "%-d %-I %e"), "1 12  1");
    }

    #[test]
    fn every_day_of_a_cycle_follows_the_one_before() {
        let mut last = (1970, 0, 0, 3);
        for day in 0..146_097 {
            let t = Moment::new(UNIX_EPOCH + Duration::from_secs(day * 86_400));
            let next = (t.year, t.month, t.day, t.weekday);
            let follows = (t.year, t.month, t.day) == (last.0, last.1, last.2 + 1)
                || (t.day == 1 && (t.year, t.month) == (last.0, last.1 + 1))
                || (t.day == 1 && t.month == 0 && t.year == last.0 + 1);
            assert!(follows && t.weekday == (last.3 + 1) % 7, "{last:?} {next:?}");
            last = next;
        }
        assert_eq!((last.0, last.1, last.2), (2369, 11, 31));
    }

    #[test]
    fn extreme_times_do_not_panic() {
        for offset in [u64::MAX, i64::MAX as u64, 1 << 60] {
            for time in [
                UNIX_EPOCH.checked_add(Duration::from_secs(offset)),
                UNIX_EPOCH.checked_sub(Duration::from_secs(offset)),
            ]
            .into_iter()
            .flatten()
            {
                strftime(time, "%c %j %U %W");
            }
        }
    }
}
