//! How far the work on a text has come.

/// How far [`prepare`](crate::text::prepare), or what it is made of, has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The text is read for its characters.
    Reading {
        /// Bytes of text read so far.
        done: u64,
        /// Bytes of text in all.
        total: u64,
    },
    /// Words are being counted, to learn a BPE.
    Counting {
        /// Bytes of text taken so far.
        done: u64,
        /// Bytes of text in all.
        total: u64,
    },
    /// The words are counted, and merges are being learned; said once.
    Merging {
        /// Merges asked for.
        merges: usize,
    },
    /// Text becomes ids.
    Encoding {
        /// Bytes of text taken so far.
        done: u64,
        /// Bytes of text in all.
        total: u64,
    },
    /// Ids are read for their fingerprint.
    Checking {
        /// Ids read so far.
        done: u64,
        /// Ids in all.
        total: u64,
    },
}
