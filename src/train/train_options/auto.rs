//! An option whose value follows from others where it is not given, written `"auto"`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

#[derive(Deserialize)]
#[serde(untagged)]
enum Auto {
    Number(u64),
    Word(String),
}

pub(super) fn serialize<S: Serializer>(value: &Option<impl Serialize>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => value.serialize(serializer),
        None => serializer.serialize_str("auto"),
    }
}

pub(super) fn deserialize<'de, T: TryFrom<u64>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    match Auto::deserialize(deserializer)? {
        Auto::Number(value) => T::try_from(value).map(Some).map_err(|_| D::Error::custom("number too large")),
        Auto::Word(word) if word == "auto" => Ok(None),
        Auto::Word(word) => Err(D::Error::custom(format!("expected a number or \"auto\", got {word:?}"))),
    }
}
