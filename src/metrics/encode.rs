//! Encodes metrics in Prometheus' text format, as Go does.
//!
//! Numbers have the shortest digits, with an exponent from 1e+06 and below 1e-04, so that scrapes can be compared as
//! text.

use std::fmt::Write;

use prometheus::proto::{Metric, MetricFamily, MetricType};

/// The text of these metric families.
pub fn text(families: &[MetricFamily]) -> String {
    let mut text = String::new();
    for family in families {
        let kind = match family.get_field_type() {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            MetricType::HISTOGRAM => "histogram",
            MetricType::SUMMARY | MetricType::UNTYPED => continue,
        };
        let name = family.name();
        let _ = writeln!(text, "# HELP {name} {}", escape(family.help(), false));
        let _ = writeln!(text, "# TYPE {name} {kind}");
        for metric in family.get_metric() {
            match family.get_field_type() {
                MetricType::COUNTER => sample(&mut text, name, metric, None, metric.get_counter().get_value()),
                MetricType::GAUGE => sample(&mut text, name, metric, None, metric.get_gauge().get_value()),
                _ => histogram(&mut text, name, metric),
            }
        }
    }
    text
}

#[allow(clippy::cast_precision_loss)] // the format has one kind of number
fn histogram(text: &mut String, name: &str, metric: &Metric) {
    let histogram = metric.get_histogram();
    let count = histogram.get_sample_count() as f64;
    let bucket = format!("{name}_bucket");
    for each in histogram.get_bucket().iter().filter(|each| each.upper_bound().is_finite()) {
        sample(text, &bucket, metric, Some(&number(each.upper_bound())), each.cumulative_count() as f64);
    }
    sample(text, &bucket, metric, Some("+Inf"), count);
    sample(text, &format!("{name}_sum"), metric, None, histogram.get_sample_sum());
    sample(text, &format!("{name}_count"), metric, None, count);
}

fn sample(text: &mut String, name: &str, metric: &Metric, upper_bound: Option<&str>, value: f64) {
    let labels = metric.get_label().iter().map(|label| (label.name(), label.value()));
    let labels: Vec<String> = labels
        .chain(upper_bound.map(|bound| ("le", bound)))
        .map(|(name, value)| format!("{name}=\"{}\"", escape(value, true)))
        .collect();
    text.push_str(name);
    if !labels.is_empty() {
        let _ = write!(text, "{{{}}}", labels.join(","));
    }
    let _ = writeln!(text, " {}", number(value));
}

fn escape(text: &str, quotes: bool) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\n', "\\n");
    if quotes { escaped.replace('"', "\\\"") } else { escaped }
}

/// Formats a number as Go's `strconv.FormatFloat(value, 'g', -1, 64)`.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "NaN" } else { ["+Inf", "-Inf"][usize::from(value.is_sign_negative())] }.to_owned();
    }
    // The shortest digits that parse to the same number.
    let shortest = format!("{value:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..6).contains(&exponent) {
        return format!("{value}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

    use super::*;

    #[test]
    fn numbers_are_written_as_go_writes_them() {
        for (value, written) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (0.25, "0.25"),
            (16.384, "16.384"),
            (0.0001, "0.0001"),
            (0.000_012_3, "1.23e-05"),
            (1e-7, "1e-07"),
            (100_000.0, "100000"),
            (123_456.7, "123456.7"),
            (999_999.9, "999999.9"),
            (1e6, "1e+06"),
            (17_965_056.0, "1.7965056e+07"),
            (1_763_700_000.25, "1.76370000025e+09"),
            (1.844_674_407_370_955_2e19, "1.8446744073709552e+19"),
            (1e100, "1e+100"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(value), written);
        }
    }

    #[test]
    fn families_are_written_with_help_type_and_escaped_labels() {
        let registry = Registry::new();
        let counter = IntCounterVec::new(Opts::new("a_total", "back\\slash\nline"), &["z", "b"]).expect("a counter");
        let histogram = HistogramOpts::new("h_seconds", "help").buckets(vec![0.001, 2_000_000.0]);
        let histogram = HistogramVec::new(histogram, &["l"]).expect("a histogram");
        registry.register(Box::new(counter.clone())).expect("new");
        registry.register(Box::new(histogram.clone())).expect("new");
        counter.with_label_values(&["1", "\"x\"\n\\"]).inc_by(1_000_000);
        histogram.with_label_values(&["v"]).observe(0.5);
        let expected = [
            "# HELP a_total back\\\\slash\\nline",
            "# TYPE a_total counter",
            "a_total{b=\"\\\"x\\\"\\n\\\\\",z=\"1\"} 1e+06",
            "# HELP h_seconds help",
            "# TYPE h_seconds histogram",
            "h_seconds_bucket{l=\"v\",le=\"0.001\"} 0",
            "h_seconds_bucket{l=\"v\",le=\"2e+06\"} 1",
            "h_seconds_bucket{l=\"v\",le=\"+Inf\"} 1",
            "h_seconds_sum{l=\"v\"} 0.5",
            "h_seconds_count{l=\"v\"} 1",
            "",
        ];
        assert_eq!(text(&registry.gather()), expected.join("\n"));
    }
}
