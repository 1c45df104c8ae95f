//! The words of the corpus as tables, in which each word that inflects is a row of forms.

pub use adjectives::{ADJECTIVES, Adjective, ENDINGS, Kind};
pub use nouns::{Class, OUTDOORS, ROWS};

mod adjectives;
mod nouns;

/// Gender and number; [`Form::ALL`] has the order of the columns in every four-column table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Form {
    pub feminine: bool,
    pub plural: bool,
}

impl Form {
    pub const ALL: [Form; 4] =
        [Self::new(false, false), Self::new(true, false), Self::new(false, true), Self::new(true, true)];

    pub const fn new(feminine: bool, plural: bool) -> Self {
        Self { feminine, plural }
    }

    pub fn index(self) -> usize {
        usize::from(self.feminine) + 2 * usize::from(self.plural)
    }

    /// The column of a table masculine singular | feminine singular | masculine plural | feminine plural.
    pub fn of(self, table: [&'static str; 4]) -> &'static str {
        table[self.index()]
    }

    /// The column of a table singular | plural.
    pub fn number(self, table: [&'static str; 2]) -> &'static str {
        table[usize::from(self.plural)]
    }
}

/// Determiners that show gender and number; the definite article is there three times, as it is the most common.
pub const DEFINITE: [&str; 4] = ["o", "a", "os", "as"];
pub const MARKED: &[[&str; 4]] = &[
    DEFINITE,
    DEFINITE,
    DEFINITE,
    ["este", "esta", "estes", "estas"],
    ["aquele", "aquela", "aqueles", "aquelas"],
    ["um", "uma", "alguns", "algumas"],
];
/// Determiners that do not show gender, so that only the noun does.
pub const UNMARKED: [&[&str]; 2] = [&["cada"], &["três", "quatro", "cinco", "seis", "sete", "oito", "nove", "dez"]];

/// Prepositions contracted with the definite article.
pub const DE: [&str; 4] = ["do", "da", "dos", "das"];
pub const AO: [&str; 4] = ["ao", "à", "aos", "às"];
pub const POR: [&str; 4] = ["pelo", "pela", "pelos", "pelas"];

/// "perto do parque": a phrase for a location.
pub const NEAR: &[(&str, [&str; 4])] = &[("perto", DE), ("ao lado", DE), ("atrás", DE), ("em frente", AO)];
/// "voltou da escola muito cansada".
pub const RETURNS: &[[&str; 2]] = &[["voltou", "voltaram"], ["chegou", "chegaram"], ["saiu", "saíram"]];
/// Who judges, and the index of the verb's person: its number says nothing about what is judged.
pub const OBSERVERS: &[(&str, usize)] =
    &[("Ana", 0), ("Pedro", 0), ("Maria", 0), ("João", 0), ("Ela", 0), ("Ele", 0), ("Eu", 1), ("Nós", 2)];
