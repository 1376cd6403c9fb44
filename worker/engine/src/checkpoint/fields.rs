//! Checked access to the fields of a JSON file, with errors that name file, field, limit and value.

use std::{
    fmt::Display,
    ops::RangeInclusive,
    path::{Component, Path},
};

use serde_json::{Map, Value};

use crate::{
    Error, Result,
    files::{optional, read_text},
};

/// Largest accepted configuration file, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// Whether `path` stays inside the directory that it is relative to.
pub(super) fn stays_inside(path: &str) -> bool {
    !path.is_empty()
        && Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}

/// Reads a text file of moderate size; `None` if there is none.
pub(super) fn read_optional(file: &Path) -> Result<Option<String>> {
    optional(read_text(file, MAX_FILE))
}

/// Reads a text file of moderate size.
pub(super) fn read(file: &Path) -> Result<String> {
    read_text(file, MAX_FILE)
}

/// Parses a JSON object.
pub(super) fn parse_object(text: &str, file: &Path) -> Result<Map<String, Value>> {
    serde_json::from_str(text).map_err(|error| Error::checkpoint(file, "JSON", error.to_string()))
}

/// One object of a JSON file. Fields that nobody asks for are ignored.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    file: &'a Path,
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The fields of the outermost object of `file`.
    pub fn new(map: &'a Map<String, Value>, file: &'a Path) -> Self {
        Self {
            file,
            prefix: String::new(),
            map,
        }
    }

    /// The object in field `name`.
    pub fn section(&self, name: &str) -> Result<Self> {
        match self.required(name)? {
            Value::Object(map) => Ok(Self {
                file: self.file,
                prefix: format!("{}{name}.", self.prefix),
                map,
            }),
            value => Err(self.refuse(name, "an object", value)),
        }
    }

    /// An error that names the field, what is allowed, and what was found.
    pub fn refuse(&self, name: &str, limit: impl Display, value: impl Display) -> Error {
        let mut found = value.to_string();
        if let Some((end, _)) = found.char_indices().nth(80) {
            found.truncate(end);
            found.push('…');
        }
        let reason = format!("must be {limit}, is {found}");
        Error::checkpoint(self.file, format!("{}{name}", self.prefix), reason)
    }

    /// The names of all fields.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// The value of `name`; `None` if absent, `Some(Null)` if null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name)
    }

    fn required(&self, name: &str) -> Result<&'a Value> {
        self.get(name)
            .ok_or_else(|| self.refuse(name, "present", "absent"))
    }

    /// A whole number within `limits`.
    pub fn size(&self, name: &str, limits: RangeInclusive<usize>) -> Result<usize> {
        self.whole(name, self.required(name)?, limits)
    }

    /// A whole number within `limits`, or `default` if the field is absent.
    pub fn size_or(
        &self,
        name: &str,
        limits: RangeInclusive<usize>,
        default: usize,
    ) -> Result<usize> {
        self.get(name)
            .map_or(Ok(default), |value| self.whole(name, value, limits))
    }

    /// `value`, found in field `name`, as a whole number within `limits`.
    pub fn whole(&self, name: &str, value: &Value, limits: RangeInclusive<usize>) -> Result<usize> {
        value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok())
            .filter(|number| limits.contains(number))
            .ok_or_else(|| {
                let (low, high) = limits.into_inner();
                let limit = if low == high {
                    format!("{low}")
                } else {
                    format!("a whole number from {low} to {high}")
                };
                self.refuse(name, limit, value)
            })
    }

    /// A number within `limits`.
    pub fn number(&self, name: &str, limits: RangeInclusive<f64>) -> Result<f64> {
        let value = self.required(name)?;
        value
            .as_f64()
            .filter(|number| limits.contains(number))
            .ok_or_else(|| {
                let (low, high) = limits.into_inner();
                self.refuse(name, format!("a number from {low} to {high}"), value)
            })
    }

    /// `N` whole numbers, each within `limits`.
    pub fn sizes<const N: usize>(
        &self,
        name: &str,
        limits: RangeInclusive<usize>,
    ) -> Result<[usize; N]> {
        let value = self.required(name)?;
        let list = value.as_array().map_or(&[][..], Vec::as_slice);
        let numbers = list
            .iter()
            .map(|item| self.whole(name, item, limits.clone()))
            .collect::<Result<Vec<_>>>()?;
        numbers
            .try_into()
            .map_err(|_| self.refuse(name, format!("a list of {N} numbers"), value))
    }

    /// True or false.
    pub fn flag(&self, name: &str) -> Result<bool> {
        self.required(name)?;
        self.flag_or(name, false)
    }

    /// True or false, or `default` if the field is absent.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.refuse(name, "true or false", value)),
        }
    }

    /// A string.
    pub fn text(&self, name: &str) -> Result<&'a str> {
        let value = self.required(name)?;
        value
            .as_str()
            .ok_or_else(|| self.refuse(name, "a string", value))
    }

    /// A relative path that does not leave the checkpoint.
    pub fn path(&self, name: &str) -> Result<String> {
        let path = self.text(name)?;
        if stays_inside(path) {
            Ok(path.to_owned())
        } else {
            Err(self.refuse(name, "a relative path without `..`", format!("{path:?}")))
        }
    }

    /// One of `allowed`, or an error; the first if the field is absent.
    pub fn choice_or_first(&self, name: &str, allowed: &[&'static str]) -> Result<()> {
        match self.get(name) {
            None => Ok(()),
            Some(value) if value.as_str().is_some_and(|text| allowed.contains(&text)) => Ok(()),
            Some(value) => Err(self.refuse(name, allowed.join(" or "), value)),
        }
    }

    /// Refuses any value of `name` but `expected`; `default` is what an absent field means.
    pub fn only_flag(&self, name: &str, expected: bool, default: bool) -> Result<()> {
        let flag = self.flag_or(name, default)?;
        if flag == expected {
            return Ok(());
        }
        let absent = if self.get(name).is_none() {
            "absent, which means "
        } else {
            ""
        };
        Err(self.refuse(name, expected, format!("{absent}{flag}")))
    }

    /// Refuses any value of `name` but null.
    pub fn only_null(&self, name: &str) -> Result<()> {
        match self.get(name) {
            None | Some(Value::Null) => Ok(()),
            Some(value) => Err(self.refuse(name, "null", value)),
        }
    }
}
