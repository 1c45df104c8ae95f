//! The ids that begin and end a text.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::model::config::ModelConfig;

/// The id or ids that end a text.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected eos_token_id to be null, an id or a list of ids, each from 0 to 4294967295")]
pub(super) enum EndIds {
    One(u32),
    Several(Vec<u32>),
}

impl EndIds {
    pub(super) fn of(config: &ModelConfig) -> Option<Self> {
        let first = config.end_of_text_id?;
        let others = &config.other_end_ids;
        Some(if others.is_empty() { Self::One(first) } else { Self::Several([&[first], &others[..]].concat()) })
    }

    /// The ids that the vocabulary has, each once: the first one and the others. Some published configurations keep
    /// GPT-2's 50256 with a smaller vocabulary.
    pub(super) fn known(ids: Option<Self>, vocab_size: usize) -> (Option<u32>, Vec<u32>) {
        let mut seen = HashSet::new();
        let ids = ids.map(Self::into_vec).unwrap_or_default();
        let mut known = ids.into_iter().filter(|id| is_known(*id, vocab_size) && seen.insert(*id));
        let first = known.next();
        (first, known.collect())
    }

    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Several(ids) => ids,
        }
    }
}

/// Whether the vocabulary has the id.
pub(super) fn is_known(id: u32, vocab_size: usize) -> bool {
    (id as usize) < vocab_size
}
