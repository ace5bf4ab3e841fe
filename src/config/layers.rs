//! Where values come from: defaults < TOML file < environment < flags.
//!
//! A value stays text, with a note of its origin, until [`resolve`](super::resolve) knows what it
//! must be: so there is one place that judges values, and every complaint can say who set them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::ConfigError;
use super::settings::{self, Kind, RESERVED_PREFIXES, SETTINGS, Setting, VARIABLE_PREFIX};

/// Who set a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody.
    Default,
    /// The TOML file.
    File,
    /// An environment variable.
    Environment,
    /// The command line.
    Flag,
}

/// A setting's values, as they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub texts: Vec<String>,
    pub origin: Origin,
}

/// One layer, or several laid over each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Values(BTreeMap<&'static str, Value>);

/// What the TOML file holds.
#[derive(Debug, Default)]
pub(super) struct FileLayer {
    pub values: Values,
    /// The `[[models]]` tables.
    pub models: Vec<ModelTable>,
}

/// One `[[models]]` table.
#[derive(Clone, Debug)]
pub(super) struct ModelTable {
    /// As after `--model`.
    pub model: String,
    /// What is different for this model.
    pub values: Values,
}

/// The defaults of the list of settings.
pub(super) fn defaults() -> Values {
    let mut values = Values::default();
    for setting in SETTINGS
        .iter()
        .filter(|setting| !setting.default.is_empty())
    {
        let texts = match setting.kind {
            Kind::Many => setting.default.split(',').map(str::to_owned).collect(),
            Kind::One | Kind::Switch => vec![setting.default.to_owned()],
        };
        values.set(setting, texts, Origin::Default);
    }
    values
}

/// Reads a TOML file.
pub(super) fn file(path: &Path) -> Result<FileLayer, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse_file(&text).map_err(|problem| ConfigError::File {
        path: path.to_owned(),
        problem,
    })
}

fn parse_file(text: &str) -> Result<FileLayer, String> {
    let table: toml::Table = toml::from_str(text).map_err(|error| error.to_string())?;
    let mut layer = FileLayer::default();
    for (key, value) in table {
        match (key.as_str(), value) {
            ("models", toml::Value::Array(tables)) => {
                for table in tables {
                    layer.models.push(model_table(table)?);
                }
            }
            ("models", _) => return Err("models is written as [[models]] tables".to_owned()),
            // Which file to read cannot stand in the file.
            ("config", _) => return Err(unknown_key("config", |setting| setting.key != "config")),
            (key, value) => {
                let setting = settings::find(key).ok_or_else(|| unknown_key(key, |_| true))?;
                layer
                    .values
                    .set(setting, texts(setting, value)?, Origin::File);
            }
        }
    }
    Ok(layer)
}

fn model_table(table: toml::Value) -> Result<ModelTable, String> {
    let toml::Value::Table(mut table) = table else {
        return Err("models is written as [[models]] tables".to_owned());
    };
    let model = match table.remove("model") {
        Some(toml::Value::String(model)) => model,
        _ => return Err("a [[models]] table needs model = \"...\"".to_owned()),
    };
    let mut values = Values::default();
    for (key, value) in table {
        let setting = settings::find(&key)
            .filter(|setting| setting.per_model)
            .ok_or_else(|| {
                format!(
                    "in [[models]]: {}",
                    unknown_key(&key, |setting| setting.per_model)
                )
            })?;
        values.set(setting, texts(setting, value)?, Origin::File);
    }
    Ok(ModelTable { model, values })
}

fn texts(setting: &Setting, value: toml::Value) -> Result<Vec<String>, String> {
    match value {
        toml::Value::Array(values) if setting.kind == Kind::Many => values
            .into_iter()
            .map(|value| scalar(setting, value))
            .collect(),
        value => scalar(setting, value).map(|text| vec![text]),
    }
}

fn scalar(setting: &Setting, value: toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        toml::Value::Boolean(switch) => Ok(switch.to_string()),
        other => Err(format!("{} cannot be a {}", setting.key, other.type_str())),
    }
}

fn unknown_key(key: &str, eligible: impl Fn(&Setting) -> bool) -> String {
    let keys = SETTINGS
        .iter()
        .filter(|setting| eligible(setting))
        .map(|setting| setting.key);
    format!("unknown key {key}{}", suggestion(key, keys))
}

/// Reads the environment.
pub(super) fn environment(
    variables: impl Iterator<Item = (String, String)>,
) -> Result<Values, ConfigError> {
    let mut values = Values::default();
    for (name, text) in variables {
        let Some(key) = name.strip_prefix(VARIABLE_PREFIX) else {
            continue;
        };
        if RESERVED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            continue;
        }
        let Some(setting) = settings::find(&key.to_lowercase()).filter(|s| s.variable() == name)
        else {
            let names: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
            return Err(ConfigError::UnknownVariable {
                suggestion: suggestion(&name, names.iter().map(String::as_str)),
                name,
            });
        };
        let texts = match setting.kind {
            Kind::Many => text.split(',').map(|part| part.trim().to_owned()).collect(),
            Kind::One | Kind::Switch => vec![text],
        };
        values.set(setting, texts, Origin::Environment);
    }
    Ok(values)
}

/// Reads what clap has parsed.
pub(super) fn flags(matches: &clap::ArgMatches) -> Values {
    let mut values = Values::default();
    for setting in SETTINGS {
        if let Ok(Some(texts)) = matches.try_get_many::<String>(setting.key) {
            values.set(setting, texts.cloned().collect(), Origin::Flag);
        }
    }
    values
}

/// ` (did you mean X?)` for the nearest name, if one is near.
fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .min()
        .filter(|(distance, _)| *distance <= (name.len() / 3).max(2))
        .map(|(_, candidate)| format!(" (did you mean {candidate}?)"))
        .unwrap_or_default()
}

/// Levenshtein's: insertions, deletions and substitutions.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

impl Values {
    pub(super) fn set(&mut self, setting: &Setting, texts: Vec<String>, origin: Origin) {
        self.0.insert(setting.key, Value { texts, origin });
    }

    /// These, with `upper` laid over them.
    pub(super) fn overlaid(mut self, upper: Values) -> Self {
        self.0.extend(upper.0);
        self
    }

    /// These as one model sees them: its own table is nearer than the file's general values, but
    /// not than the environment and the flags.
    pub(super) fn for_model(&self, table: Option<&ModelTable>) -> Self {
        let mut values = self.clone();
        for (key, value) in table.into_iter().flat_map(|table| &table.values.0) {
            if self
                .0
                .get(key)
                .is_none_or(|general| general.origin <= Origin::File)
            {
                values.0.insert(key, value.clone());
            }
        }
        // Two names for one thing: what the table says stands in for both.
        let says = |key: &str| table.is_some_and(|table| table.values.0.contains_key(key));
        for (said, other) in [("device", "devices"), ("devices", "device")] {
            let general = self.0.get(other).map(|value| value.origin.clone());
            if says(said) && !says(other) && general <= Some(Origin::File) {
                values.0.remove(other);
            }
        }
        values
    }

    /// As they would stand in the environment.
    pub(super) fn variables(&self) -> Vec<(String, String)> {
        let variable = |(key, value): (&&'static str, &Value)| {
            Some((settings::find(key)?.variable(), value.texts.join(",")))
        };
        self.0.iter().filter_map(variable).collect()
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// `value` is refused, since it `must` be something else.
    pub(super) fn refuse(&self, key: &str, value: &str, must: impl fmt::Display) -> ConfigError {
        let origin = self
            .get(key)
            .map_or(Origin::Default, |value| value.origin.clone());
        let setting = settings::find(key).expect("only settings are refused");
        let place = match origin {
            Origin::Default => "by default".to_owned(),
            Origin::File => "in the configuration file".to_owned(),
            Origin::Environment => format!("from {}", setting.variable()),
            Origin::Flag => format!("from --{}", setting.flag()),
        };
        ConfigError::Value {
            key: setting.key,
            value: value.to_owned(),
            place,
            must: must.to_string(),
        }
    }

    pub(super) fn list(&self, key: &str) -> &[String] {
        debug_assert!(settings::find(key).is_some(), "{key} is no setting");
        self.get(key).map_or(&[], |value| &value.texts)
    }

    /// The one value, if it is set. An empty text unsets a value of a lower layer.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        let last = self.list(key).last()?;
        (!last.is_empty()).then_some(last)
    }

    pub(super) fn path(&self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    pub(super) fn parsed<T: FromStr>(&self, key: &str, must: &str) -> Result<T, ConfigError> {
        let text = self.text(key).unwrap_or_default();
        text.parse().map_err(|_| self.refuse(key, text, must))
    }

    pub(super) fn number<T: TryFrom<u64>>(
        &self,
        key: &str,
        range: RangeInclusive<u64>,
    ) -> Result<T, ConfigError> {
        let text = self.text(key).unwrap_or_default();
        // TOML's digit groups are welcome everywhere.
        text.replace('_', "")
            .parse::<u64>()
            .ok()
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| {
                let must = format!("a whole number from {} to {}", range.start(), range.end());
                self.refuse(key, text, must)
            })
    }

    pub(super) fn optional_number<T: TryFrom<u64>>(
        &self,
        key: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<T>, ConfigError> {
        self.text(key).map(|_| self.number(key, range)).transpose()
    }

    pub(super) fn millis(
        &self,
        key: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Duration, ConfigError> {
        self.number(key, range).map(Duration::from_millis)
    }

    pub(super) fn seconds(
        &self,
        key: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Duration, ConfigError> {
        self.number(key, range).map(Duration::from_secs)
    }

    pub(super) fn switch(&self, key: &str) -> Result<bool, ConfigError> {
        self.parsed(key, "true or false")
    }

    pub(super) fn choice<T: Clone>(
        &self,
        key: &str,
        choices: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        let text = self.text(key).unwrap_or_default();
        choices
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, choice)| choice.clone())
            .ok_or_else(|| {
                let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                self.refuse(key, text, format!("one of {}", names.join(", ")))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_met_with_a_suggestion() {
        for (name, expected) in [
            ("batch_sise", " (did you mean batch_size?)"),
            ("max_queue_delay", " (did you mean max_queue_delay_ms?)"),
            ("colour", ""),
        ] {
            let keys = SETTINGS.iter().map(|setting| setting.key);
            assert_eq!(suggestion(name, keys), expected);
        }
    }

    #[test]
    fn files_are_read_strictly() {
        for (text, expected) in [
            (
                "batch_sise = 1",
                "unknown key batch_sise (did you mean batch_size?)",
            ),
            ("config = 'x'", "unknown key config"),
            ("batch_size = [1]", "batch_size cannot be a array"),
            ("[batch_size]", "batch_size cannot be a table"),
            ("models = 1", "[[models]]"),
            ("[[models]]\nbatch_size = 1", "needs model"),
            (
                "[[models]]\nmodel = 'a'\nport = 1",
                "in [[models]]: unknown key port",
            ),
            ("batch_size = ", "batch_size"),
        ] {
            let error = parse_file(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let layer = parse_file("model = ['a', 'b']\ncors_origin = 'c'\noffline = true").unwrap();
        assert_eq!(layer.values.list("model"), ["a", "b"]);
        assert_eq!(layer.values.list("cors_origin"), ["c"]);
        assert_eq!(layer.values.switch("offline").ok(), Some(true));
    }

    #[test]
    fn unknown_variables_are_refused() {
        let read = |name: &str| environment(std::iter::once((name.to_owned(), "1".to_owned())));
        assert_eq!(
            read("GIRANDOLE_BATCH_SIZE").unwrap().text("batch_size"),
            Some("1")
        );
        for (name, expected) in [
            ("GIRANDOLE_BATCH_SIZ", "did you mean GIRANDOLE_BATCH_SIZE?"),
            ("GIRANDOLE_batch_size", "GIRANDOLE_batch_size"),
        ] {
            let error = read(name).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(read("GIRANDOLE_TEST_X").unwrap().0.is_empty());
        assert!(read("GIRANDOLE_CI_X").unwrap().0.is_empty());
        assert!(read("OTHER").unwrap().0.is_empty());
    }
}
