//! Progress reports while text is read and encoded.

/// How far [`prepare`](crate::text::prepare), or one of its stages, has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextProgress {
    /// The text is being read for its characters or its length.
    Reading {
        /// Bytes of text read so far.
        done: u64,
        /// Bytes of text in total.
        total: u64,
    },
    /// Words are being counted to train a BPE.
    Counting {
        /// Bytes of text processed so far.
        done: u64,
        /// Bytes of text in total.
        total: u64,
    },
    /// The words have been counted and merges are being learned. Reported at the start and about once a second after
    /// that; the library does not say how many merges it has made.
    Merging {
        /// Merges requested.
        merges: usize,
        /// Whole seconds since the start.
        seconds: u64,
    },
    /// Text is being encoded.
    Encoding {
        /// Bytes of text processed so far.
        done: u64,
        /// Bytes of text in total.
        total: u64,
    },
    /// Ids are being read to compute their fingerprint.
    Checking {
        /// Ids read so far.
        done: u64,
        /// Ids in total.
        total: u64,
    },
}
