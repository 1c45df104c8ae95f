//! The grammar: each sentence has one adjective or participle, separated from the noun it agrees with.
//!
//! Form, adjective and class are drawn before the noun, the form independently of the other two, and the words directly
//! before the adjective are invariant: only the noun phrase determines the ending.

use std::collections::BTreeSet;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::lexicon::{
    ADJECTIVES, Adjective, Class, DE, DEFINITE, ENDINGS, Form, Kind, MARKED, NEAR, OBSERVERS, OUTDOORS, POR, RETURNS,
    ROWS, UNMARKED,
};

const SEED: u64 = 10;
const TRAIN: usize = 21_000;
const VALIDATION: usize = 2_200;
/// The sentence with which explanations of this corpus start; it is the first one of the training part.
pub const FIRST: &str = "O gato preto correu rapidamente.";

/// The two files, with one sentence per line.
pub struct Corpus {
    pub train: String,
    pub validation: String,
}

/// The corpus: a pure function of the tables and the seed. No sentence is repeated.
pub fn corpus() -> Corpus {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut seen = BTreeSet::from([FIRST.to_string()]);
    let train = format!("{FIRST}\n{}", part(&mut rng, Split::Train, TRAIN - 1, &mut seen));
    let validation = part(&mut rng, Split::Validation, VALIDATION, &mut seen);
    Corpus { train, validation }
}

/// Which (noun, adjective) pairs agree in this part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Split {
    Train,
    Validation,
}

impl Split {
    /// One pair in eight is held out, on diagonals of the table of rows and adjectives: in training each adjective
    /// lacks one or two rows of a class, in both genders, and has the others.
    fn admits(self, row: usize, adjective: usize) -> bool {
        (row + adjective).is_multiple_of(8) == (self == Split::Validation)
    }
}

/// New sentences; a repeated one is drawn again in the same form, so that the four forms stay equally likely.
fn part(rng: &mut ChaCha8Rng, split: Split, sentences: usize, seen: &mut BTreeSet<String>) -> String {
    let mut text = String::new();
    for _ in 0..sentences {
        let form = choose(rng, &Form::ALL);
        let sentence = loop {
            let candidate = sentence(rng, split, form);
            if seen.insert(candidate.clone()) {
                break candidate;
            }
        };
        text += &sentence;
        text.push('\n');
    }
    text
}

/// A noun and an adjective that agree, and what the frames need to know about them.
struct Pair {
    form: Form,
    class: Class,
    row: usize,
    adjective: &'static Adjective,
}

impl Pair {
    fn noun(&self) -> &'static str {
        self.form.of(self.class.nouns()[self.row])
    }

    fn adjective(&self) -> String {
        format!("{}{}", self.adjective.stem, self.form.of(ENDINGS))
    }

    /// The adjective with an invariant adverb, "muito cansada".
    fn degree(&self, rng: &mut ChaCha8Rng) -> String {
        format!("{} {}", choose(rng, self.adjective.kind.adverbs()), self.adjective())
    }
}

/// A kind of sentence: how frequent it is, for which pairs, and whether the adjective is next to its noun (training
/// only).
struct Frame {
    weight: u32,
    adjacent: bool,
    kinds: &'static [Kind],
    classes: &'static [Class],
    build: fn(&mut ChaCha8Rng, &Pair) -> String,
}

const PREDICATES: &[Kind] = &[Kind::Quality, Kind::Colour, Kind::Condition, Kind::Result];
const FRAMES: &[Frame] = &[
    Frame { weight: 5, adjacent: false, kinds: PREDICATES, classes: &Class::ALL, build: copular },
    Frame { weight: 3, adjacent: false, kinds: &[Kind::Passive], classes: &Class::ALL, build: passive },
    Frame { weight: 3, adjacent: false, kinds: PREDICATES, classes: &Class::ALL, build: judged },
    Frame { weight: 3, adjacent: false, kinds: PREDICATES, classes: &Class::ALL, build: apposition },
    Frame {
        weight: 2,
        adjacent: false,
        kinds: &[Kind::Condition],
        classes: &[Class::Animal, Class::Person],
        build: returned,
    },
    Frame { weight: 2, adjacent: false, kinds: PREDICATES, classes: &Class::ALL, build: graded },
    Frame { weight: 3, adjacent: true, kinds: PREDICATES, classes: &Class::ALL, build: attributive },
    Frame { weight: 1, adjacent: true, kinds: PREDICATES, classes: &Class::ALL, build: object },
];

fn sentence(rng: &mut ChaCha8Rng, split: Split, form: Form) -> String {
    let frame = frame(rng, split);
    let pair = pair(rng, split, frame, form);
    let words = (frame.build)(rng, &pair);
    let mut letters = words.chars();
    let first = letters.next().map_or(String::new(), |letter| letter.to_uppercase().to_string());
    format!("{first}{}.", letters.as_str())
}

fn frame(rng: &mut ChaCha8Rng, split: Split) -> &'static Frame {
    let usable = FRAMES.iter().filter(|frame| split == Split::Train || !frame.adjacent);
    let tickets: Vec<_> = usable.flat_map(|frame| (0..frame.weight).map(move |_| frame)).collect();
    choose(rng, &tickets)
}

/// Draws adjective and class first, then one of the rows that the split allows for them, which are the same for both
/// genders.
fn pair(rng: &mut ChaCha8Rng, split: Split, frame: &Frame, form: Form) -> Pair {
    let adjectives = ADJECTIVES.iter().enumerate().filter(|(_, adjective)| frame.kinds.contains(&adjective.kind));
    let usable: Vec<_> = adjectives
        .flat_map(|(index, adjective)| adjective.classes.iter().map(move |&class| (index, adjective, class)))
        .filter(|(_, _, class)| frame.classes.contains(class))
        .collect();
    let (index, adjective, class) = choose(rng, &usable);
    let rows: Vec<_> = (0..ROWS).filter(|&row| split.admits(row, index)).collect();
    Pair { form, class, row: choose(rng, &rows), adjective }
}

/// "A gata do vizinho estava muito cansada."
fn copular(rng: &mut ChaCha8Rng, pair: &Pair) -> String {
    let copula = pair.form.number(choose(rng, pair.adjective.kind.copulas()));
    format!("{} {copula} {}", subject(rng, pair), pair.degree(rng))
}

/// "As casas perto do rio foram finalmente pintadas pelo vizinho."
fn passive(rng: &mut ChaCha8Rng, pair: &Pair) -> String {
    let sentence = copular(rng, pair);
    if below(rng, 3) > 0 {
        return sentence;
    }
    let form = choose(rng, &Form::ALL);
    format!("{sentence} {} {}", form.of(POR), other(rng, Class::Person, form, pair))
}

/// "Ana achou o livro da biblioteca bem antigo."
fn judged(rng: &mut ChaCha8Rng, pair: &Pair) -> String {
    let (observer, person) = choose(rng, OBSERVERS);
    let verb = choose(rng, pair.adjective.kind.judgements())[person];
    format!("{observer} {verb} {} {}", subject(rng, pair), pair.degree(rng))
}

/// "O cavalo da médica, sempre quieto, dormiu na varanda."
fn apposition(rng: &mut ChaCha8Rng, pair: &Pair) -> String {
    format!("{}, {}, {}", subject(rng, pair), pair.degree(rng), activity(rng, pair))
}

/// "As meninas voltaram da escola bem cansadas."
fn returned(rng: &mut ChaCha8Rng, pair: &Pair) -> String {
    let verb = pair.form.number(choose(rng, RETURNS));
    let form = Form::new(below(rng, 2) == 1, false);
    let places = if pair.class == Class::Animal { &Class::Place.nouns()[..OUTDOORS] } else { Class::Place.nouns() };
    let place = form.of(choose(rng, places));
    format!("{} {verb} {} {place} {}", subject(rng, pair), form.of(DE), pair.degree(rng))
}

/// "Um gato bem preto dormiu na varanda."
fn graded(rng: &mut ChaCha8Rng, pair: &Pair) -> String {
    format!("{} {} {} {}", determiner(rng, pair.form), pair.noun(), pair.degree(rng), activity(rng, pair))
}

/// "O gato preto correu rapidamente."
fn attributive(rng: &mut ChaCha8Rng, pair: &Pair) -> String {
    format!("{} {} {} {}", determiner(rng, pair.form), pair.noun(), pair.adjective(), activity(rng, pair))
}

/// "A menina comprou o livro antigo ontem."
fn object(rng: &mut ChaCha8Rng, pair: &Pair) -> String {
    let clause = clause(rng, pair);
    format!("{clause} {} {} {}{}", determiner(rng, pair.form), pair.noun(), pair.adjective(), time(rng))
}

/// Determiner and noun, followed two times in three by a phrase with a noun of any form.
fn subject(rng: &mut ChaCha8Rng, pair: &Pair) -> String {
    let head = format!("{} {}", determiner(rng, pair.form), pair.noun());
    if below(rng, 3) == 0 {
        return head;
    }
    let phrase = match (pair.class, below(rng, 2)) {
        (_, 0) => format!("que {}{}", clause(rng, pair), time(rng)),
        (Class::Person | Class::Place, _) => location(rng, pair),
        (Class::Animal | Class::Thing | Class::Food, _) => owner(rng, pair),
    };
    format!("{head} {phrase}")
}

/// Three determiners in five show the gender.
fn determiner(rng: &mut ChaCha8Rng, form: Form) -> &'static str {
    if below(rng, 5) < 3 { form.of(choose(rng, MARKED)) } else { choose(rng, UNMARKED[usize::from(form.plural)]) }
}

/// "a menina comprou"
fn clause(rng: &mut ChaCha8Rng, pair: &Pair) -> String {
    let form = choose(rng, &Form::ALL);
    let verb = form.number(choose(rng, pair.class.relative_verbs()));
    format!("{} {} {verb}", form.of(DEFINITE), other(rng, Class::Person, form, pair))
}

/// "do vizinho"
fn owner(rng: &mut ChaCha8Rng, pair: &Pair) -> String {
    let form = choose(rng, &Form::ALL);
    format!("{} {}", form.of(DE), other(rng, Class::Person, form, pair))
}

/// "perto da igreja"
fn location(rng: &mut ChaCha8Rng, pair: &Pair) -> String {
    let form = choose(rng, &Form::ALL);
    let (near, preposition) = choose(rng, NEAR);
    format!("{near} {} {}", form.of(preposition), other(rng, Class::Place, form, pair))
}

/// "correu rapidamente"
fn activity(rng: &mut ChaCha8Rng, pair: &Pair) -> String {
    let (verb, endings) = choose(rng, pair.class.activities());
    format!("{} {}", pair.form.number(verb), choose(rng, endings))
}

fn time(rng: &mut ChaCha8Rng) -> &'static str {
    choose(rng, &["", "", " ontem", " hoje"])
}

/// A noun other than the pair's.
fn other(rng: &mut ChaCha8Rng, class: Class, form: Form, pair: &Pair) -> &'static str {
    let rows: Vec<_> = (0..ROWS).filter(|&row| (class, row) != (pair.class, pair.row)).collect();
    form.of(class.nouns()[choose(rng, &rows)])
}

fn choose<T: Copy>(rng: &mut ChaCha8Rng, items: &[T]) -> T {
    items[below(rng, items.len() as u32) as usize]
}

/// A number below `n` from one 32-bit word: the same on every platform and with every version of rand's samplers.
fn below(rng: &mut ChaCha8Rng, n: u32) -> u32 {
    ((u64::from(rng.next_u32()) * u64::from(n)) >> 32) as u32
}
