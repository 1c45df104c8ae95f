//! The date and time for templates that tell the model what day it is.

use std::time::{SystemTime, UNIX_EPOCH};

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

const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// The current time in UTC, in a format of `strftime`.
pub(super) fn now(format: &str) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    strftime(format, since.as_secs())
}

/// The time in seconds since 1970. Codes other than those of C's dates and times in English are left as they are.
fn strftime(format: &str, seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (month_name, weekday) = (MONTHS[month as usize - 1], WEEKDAYS[(days % 7) as usize]);
    let (mut text, mut codes) = (String::new(), format.chars());
    while let Some(c) = codes.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        text += &match codes.next() {
            Some('Y') => format!("{year}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('B') => month_name.into(),
            Some('b') => month_name[..3].into(),
            Some('A') => weekday.into(),
            Some('a') => weekday[..3].into(),
            Some('H') => format!("{:02}", time / 3600),
            Some('M') => format!("{:02}", time / 60 % 60),
            Some('S') => format!("{:02}", time % 60),
            Some('%') => "%".into(),
            Some(other) => format!("%{other}"),
            None => "%".into(),
        };
    }
    text
}

/// The year, month and day of the Gregorian calendar, from the days since 1970. Years begin in March, so that the leap
/// day is their last; 400 of them have the same number of days (Hinnant, chrono-compatible low-level date algorithms).
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since March of the year 0
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Python's `datetime.fromtimestamp(seconds, timezone.utc).strftime(..)`.
    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "Thu Thursday 01 Jan January 1970 70 00:00:00"),
            (951_782_399, "Mon Monday 28 Feb February 2000 00 23:59:59"),
            (951_868_799, "Tue Tuesday 29 Feb February 2000 00 23:59:59"),
            (1_735_689_600, "Wed Wednesday 01 Jan January 2025 25 00:00:00"),
            (4_107_542_400, "Mon Monday 01 Mar March 2100 00 00:00:00"),
        ] {
            assert_eq!(strftime("%a %A %d %b %B %Y %y %H:%M:%S", seconds), expected);
        }
        assert_eq!(strftime("%d/%m, 100%% %q %", 86_400), "02/01, 100% %q %");
    }
}
