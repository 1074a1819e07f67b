//! The day of a measurement.

use std::fmt;
use std::time::SystemTime;

const DAY_SECONDS: u64 = 86_400;
/// Days of 400 years, after which the calendar repeats itself.
const ERA_DAYS: u64 = 146_097;
/// Days from 1 March of the year 0 to 1 January 1970.
const EPOCH_DAYS: u64 = 719_468;

/// A day of the Gregorian calendar, in UTC; printed as `2030-01-31`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    year: u64,
    month: u64,
    day: u64,
}

impl Date {
    /// The day that the system's clock shows; 1 January 1970 for a clock that is set before it.
    pub fn today() -> Date {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Date::of_epoch_day(since.unwrap_or_default().as_secs() / DAY_SECONDS)
    }

    /// The day so many days after 1 January 1970.
    fn of_epoch_day(days: u64) -> Date {
        // Years begin in March here, so that a leap day is the last of its year.
        let days = days + EPOCH_DAYS;
        let (era, day_of_era) = (days / ERA_DAYS, days % ERA_DAYS);
        let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
        let year_of_era = (day_of_era - leap_days) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Five months from March, and from August, have 153 days.
        let months_since_march = (5 * day_of_year + 2) / 153;
        let month = (months_since_march + 2) % 12 + 1;
        Date {
            year: 400 * era + year_of_era + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * months_since_march + 2) / 5 + 1,
        }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Date { year, month, day } = self;
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_through_leap_years_and_centuries() {
        for (days, date) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (11_322, "2000-12-31"),
            (20_512, "2026-02-28"),
            (20_513, "2026-03-01"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(Date::of_epoch_day(days).to_string(), date);
        }
    }

    #[test]
    fn each_day_follows_the_one_before() {
        let mut before = Date::of_epoch_day(0);
        for days in 1..200_000 {
            let date = Date::of_epoch_day(days);
            let Date { year, month, day } = before;
            let follows = match (date.month, date.day) {
                (1, 1) => (date.year, month, day) == (year + 1, 12, 31),
                (_, 1) => (date.year, date.month) == (year, month + 1) && day >= 28,
                _ => {
                    date == Date {
                        day: day + 1,
                        ..before
                    }
                }
            };
            assert!(follows, "{before}, {date}");
            before = date;
        }
    }
}
