//! Adjectives and participles, and the verbs and adverbs that go with their kind.

use super::nouns::Class::{self, Animal as A, Food as F, Person as P, Place as L, Thing as T};

/// How an adjective is predicated: with which verbs and adverbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Quality,
    Colour,
    Condition,
    Result,
    Passive,
}

impl Kind {
    pub fn copulas(self) -> &'static [[&'static str; 2]] {
        match self {
            Kind::Quality => &[["é", "são"], ["era", "eram"], ["parece", "parecem"], ["parecia", "pareciam"]],
            Kind::Colour => &[["é", "são"], ["era", "eram"]],
            Kind::Condition => {
                &[["está", "estão"], ["estava", "estavam"], ["ficou", "ficaram"], ["parecia", "pareciam"]]
            }
            Kind::Result => &[["está", "estão"], ["estava", "estavam"], ["parecia", "pareciam"]],
            Kind::Passive => {
                &[["foi", "foram"], ["será", "serão"], ["vai ser", "vão ser"], ["tinha sido", "tinham sido"]]
            }
        }
    }

    /// None of these inflects for gender or number: the word before the adjective says nothing about its ending.
    pub fn adverbs(self) -> &'static [&'static str] {
        match self {
            Kind::Quality => {
                &["muito", "bem", "bastante", "tão", "realmente", "sem dúvida", "de fato", "cada vez mais", "sempre"]
            }
            Kind::Colour => &["bem", "meio", "quase", "realmente"],
            Kind::Condition => &["muito", "bem", "bastante", "tão", "meio", "realmente", "um pouco", "cada vez mais"],
            Kind::Result => &["bem", "ainda", "sempre", "agora", "realmente", "outra vez"],
            Kind::Passive => &["finalmente", "enfim", "logo", "rapidamente", "também", "por fim", "mais uma vez"],
        }
    }

    /// Verbs of "Ana achou o livro muito antigo", in the persons of [`OBSERVERS`].
    pub fn judgements(self) -> &'static [[&'static str; 3]] {
        const ACHAR: [&str; 3] = ["achou", "achei", "achamos"];
        const VER: [&str; 3] = ["viu", "vi", "vimos"];
        const ENCONTRAR: [&str; 3] = ["encontrou", "encontrei", "encontramos"];
        match self {
            Kind::Quality | Kind::Colour => &[ACHAR, ["julgou", "julguei", "julgamos"]],
            Kind::Condition => &[ACHAR, VER, ENCONTRAR],
            Kind::Result => &[VER, ENCONTRAR],
            Kind::Passive => &[],
        }
    }
}

/// An adjective or participle with the four forms stem + o, a, os, as, and the nouns it goes with.
pub struct Adjective {
    pub stem: &'static str,
    pub kind: Kind,
    pub classes: &'static [Class],
}

pub const ENDINGS: [&str; 4] = ["o", "a", "os", "as"];

const fn quality(stem: &'static str, classes: &'static [Class]) -> Adjective {
    Adjective { stem, kind: Kind::Quality, classes }
}

const fn colour(stem: &'static str, classes: &'static [Class]) -> Adjective {
    Adjective { stem, kind: Kind::Colour, classes }
}

const fn condition(stem: &'static str, classes: &'static [Class]) -> Adjective {
    Adjective { stem, kind: Kind::Condition, classes }
}

const fn result(stem: &'static str, classes: &'static [Class]) -> Adjective {
    Adjective { stem, kind: Kind::Result, classes }
}

const fn passive(stem: &'static str, classes: &'static [Class]) -> Adjective {
    Adjective { stem, kind: Kind::Passive, classes }
}

pub const ADJECTIVES: &[Adjective] = &[
    quality("bonit", &[A, P, T, L]),
    quality("fei", &[A, P, T, L]),
    quality("velh", &[A, P, T, L]),
    quality("estranh", &[A, P, T, L, F]),
    quality("pequen", &[A, T, L]),
    quality("nov", &[T, L]),
    quality("antig", &[T, L]),
    quality("modern", &[T, L]),
    quality("famos", &[P, L]),
    quality("gord", &[A, P]),
    quality("magr", &[A, P]),
    quality("mans", &[A]),
    quality("brav", &[A, P]),
    quality("espert", &[A, P]),
    quality("preguiços", &[A, P]),
    quality("tranquil", &[A, P, L]),
    quality("medros", &[A, P]),
    quality("simpátic", &[P]),
    quality("educad", &[P]),
    quality("generos", &[P]),
    quality("talentos", &[P]),
    quality("car", &[T, F]),
    quality("barat", &[T, F]),
    quality("silencios", &[L]),
    quality("barulhent", &[L]),
    quality("movimentad", &[L]),
    quality("gostos", &[F]),
    quality("saboros", &[F]),
    quality("pesad", &[T, F]),
    colour("pret", &[A, T]),
    colour("branc", &[A, T]),
    colour("amarel", &[T]),
    colour("vermelh", &[T]),
    condition("cansad", &[A, P]),
    condition("suj", &[A, P, T, L]),
    condition("limp", &[T, L]),
    condition("molhad", &[A, P, T]),
    condition("nervos", &[A, P]),
    condition("assustad", &[A, P]),
    condition("quiet", &[A, P]),
    condition("famint", &[A, P]),
    condition("preocupad", &[P]),
    condition("vazi", &[L]),
    condition("lotad", &[L]),
    condition("escur", &[L]),
    condition("empoeirad", &[T]),
    condition("estragad", &[T, F]),
    condition("fri", &[F]),
    condition("azed", &[F]),
    condition("amarg", &[F]),
    result("perdid", &[A, T]),
    result("escondid", &[A, P, T]),
    result("abandonad", &[A, L]),
    result("solt", &[A]),
    result("acordad", &[P]),
    result("atrasad", &[P]),
    result("ocupad", &[P]),
    result("fechad", &[L]),
    result("decorad", &[L]),
    result("congelad", &[F]),
    passive("alimentad", &[A]),
    passive("resgatad", &[A]),
    passive("encontrad", &[A, P, T]),
    passive("fotografad", &[A, P, L]),
    passive("convidad", &[P]),
    passive("chamad", &[P]),
    passive("elogiad", &[P, L, F]),
    passive("vendid", &[A, T, F]),
    passive("comprad", &[T, F]),
    passive("devolvid", &[T]),
    passive("roubad", &[T]),
    passive("pintad", &[L]),
    passive("reformad", &[L]),
    passive("construíd", &[L]),
    passive("visitad", &[L]),
    passive("servid", &[F]),
    passive("preparad", &[F]),
    passive("provad", &[F]),
];
