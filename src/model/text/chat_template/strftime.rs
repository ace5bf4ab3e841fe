//! `strftime_now`: today's date for templates that tell the model about it. UTC, English names.

use std::time::UNIX_EPOCH;

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

/// 1 January 1970 was the first of these.
const WEEKDAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

const SECONDS_A_DAY: u64 = 86_400;

/// The wall clock.
#[expect(
    clippy::disallowed_methods,
    reason = "a template asks for today's date; tests inject a clock"
)]
pub(super) fn seconds_since_1970() -> u64 {
    std::time::SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// `seconds` since 1970 as `format` says (C's `strftime`).
///
/// # Errors
/// A directive that isn't known here, as a message.
pub(crate) fn format_utc(format: &str, seconds: u64) -> Result<String, String> {
    let date = Date::of_day(seconds / SECONDS_A_DAY);
    let (hour, minute, second) = (
        seconds % SECONDS_A_DAY / 3_600,
        seconds % 3_600 / 60,
        seconds % 60,
    );
    let hour_of_twelve = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut directive = characters.next();
        // "%-d": without leading zeros.
        let pads = directive != Some('-');
        if !pads {
            directive = characters.next();
        }
        let number = |number: u64, width: usize| {
            let width = if pads { width } else { 0 };
            format!("{number:0width$}")
        };
        let piece = match directive {
            Some('Y') => number(date.year, 4),
            Some('y') => number(date.year % 100, 2),
            Some('m') => number(date.month, 2),
            Some('d') => number(date.day, 2),
            Some('j') => number(date.day_of_year, 3),
            Some('B') => MONTHS[date.month as usize - 1].to_owned(),
            Some('b' | 'h') => MONTHS[date.month as usize - 1][..3].to_owned(),
            Some('A') => date.weekday.to_owned(),
            Some('a') => date.weekday[..3].to_owned(),
            Some('H') => number(hour, 2),
            Some('I') => number(hour_of_twelve, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('F') => format!("{:04}-{:02}-{:02}", date.year, date.month, date.day),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            Some(other) => return Err(format!("strftime_now does not know %{other}")),
            None => return Err("strftime_now: the format ends with %".to_owned()),
        };
        out.push_str(&piece);
    }
    Ok(out)
}

struct Date {
    year: u64,
    month: u64,
    day: u64,
    day_of_year: u64,
    weekday: &'static str,
}

impl Date {
    /// The date so many days after 1 January 1970.
    fn of_day(days: u64) -> Self {
        let is_leap = |year: u64| {
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
        };
        let weekday = WEEKDAYS[(days % 7) as usize];
        // The calendar repeats every 400 years, so that a clock gone mad costs no long loop.
        const DAYS_IN_400_YEARS: u64 = 146_097;
        let mut year = 1970 + days / DAYS_IN_400_YEARS * 400;
        let mut rest = days % DAYS_IN_400_YEARS;
        while rest >= 365 + u64::from(is_leap(year)) {
            rest -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        let day_of_year = rest + 1;
        let february = 28 + u64::from(is_leap(year));
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if rest < length {
                break;
            }
            rest -= length;
            month += 1;
        }
        Date {
            year,
            month,
            day: rest + 1,
            day_of_year,
            weekday,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let check = |seconds: u64, written: &str| {
            let format = "%Y-%m-%d %H:%M:%S %j %A";
            assert_eq!(format_utc(format, seconds).as_deref(), Ok(written));
        };
        check(0, "1970-01-01 00:00:00 001 Thursday");
        check(951_782_399, "2000-02-28 23:59:59 059 Monday");
        check(951_782_400, "2000-02-29 00:00:00 060 Tuesday");
        check(1_709_251_200, "2024-03-01 00:00:00 061 Friday");
        check(1_735_689_599, "2024-12-31 23:59:59 366 Tuesday");
        check(4_102_444_800, "2100-01-01 00:00:00 001 Friday");
        check(4_107_542_400, "2100-03-01 00:00:00 060 Monday");
    }

    #[test]
    fn directives_are_those_of_c() {
        let check = |format: &str, written: Result<&str, &str>| {
            // 3 July 2026, 00:05:09
            let found = format_utc(format, 1_783_037_109);
            assert_eq!(found.as_deref().map_err(String::as_str), written);
        };
        check("%d %b %Y", Ok("03 Jul 2026"));
        check("%-d %B %y, %a %I:%M %p", Ok("3 July 26, Fri 12:05 AM"));
        check("%F %T %Z%z 100%%", Ok("2026-07-03 00:05:09 UTC+0000 100%"));
        check("%Q", Err("strftime_now does not know %Q"));
        check("%", Err("strftime_now: the format ends with %"));
    }
}
