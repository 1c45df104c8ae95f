//! Finds agreement in the text using only the tables: nothing here knows how a sentence was generated.

use std::collections::BTreeMap;

use super::lexicon::{ADJECTIVES, AO, Class, DE, ENDINGS, Form, Kind, MARKED, POR, RETURNS, ROWS, UNMARKED};

/// A noun in the text. Class and row identify its lemma; the two genders of a row count as one, which is the stricter
/// reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noun {
    pub class: Class,
    pub row: usize,
    pub form: Form,
}

/// An adjective in the text and the noun it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Agreement<'t> {
    pub noun: Noun,
    /// Index into [`ADJECTIVES`].
    pub adjective: usize,
    /// The form in the text.
    pub form: Form,
    /// Whether the adjective directly follows its noun.
    pub adjacent: bool,
    /// The last noun before the adjective, whether its own or another.
    pub nearest: Noun,
    /// The word before its noun.
    pub determiner: &'t str,
    /// The word before the adjective, and the one before that.
    pub previous: [&'t str; 2],
    /// The character after the adjective.
    pub next: char,
}

/// All forms in the tables, by spelling.
pub struct Reader {
    nouns: BTreeMap<&'static str, Noun>,
    adjectives: BTreeMap<String, (usize, Form)>,
    /// The forms that a determiner allows.
    determiners: BTreeMap<&'static str, Vec<Form>>,
    /// Whether a finite verb is plural.
    verbs: BTreeMap<&'static str, bool>,
}

impl Reader {
    pub fn new() -> Self {
        Self { nouns: nouns(), adjectives: adjectives(), determiners: determiners(), verbs: verbs() }
    }

    /// The adjectives of a line. Each belongs to the noun it directly follows, otherwise to the first noun of the
    /// sentence.
    pub fn agreements<'t>(&self, line: &'t str) -> Vec<Agreement<'t>> {
        let tokens: Vec<&str> = line.split(' ').collect();
        let words: Vec<&str> = tokens.iter().map(|token| word(token)).collect();
        let nouns: Vec<_> =
            words.iter().enumerate().filter_map(|(at, word)| Some((at, *self.nouns.get(word)?))).collect();
        let mut found = Vec::new();
        for (at, &(adjective, form)) in
            words.iter().enumerate().filter_map(|(at, &w)| Some((at, self.adjectives.get(w)?)))
        {
            let before: Vec<_> = nouns.iter().copied().filter(|&(noun, _)| noun < at).collect();
            let (Some(&first), Some(&last)) = (before.first(), before.last()) else { continue };
            let adjacent = last.0 + 1 == at && !tokens[last.0].ends_with(',');
            let (place, noun) = if adjacent { last } else { first };
            let next = tokens[at][words[at].len()..].chars().next().unwrap_or(' ');
            let (determiner, previous) = (words[place.saturating_sub(1)], [words[at - 1], words[at.saturating_sub(2)]]);
            found.push(Agreement { noun, adjective, form, adjacent, nearest: last.1, determiner, previous, next });
        }
        found
    }

    /// What is wrong with a line: an adjective, determiner or verb in another form than its noun's.
    pub fn fault(&self, line: &str) -> Option<String> {
        let agreements = self.agreements(line);
        if agreements.len() != 1 || agreements.iter().any(|found| found.form != found.noun.form) {
            return Some(format!("adjective: {line}"));
        }
        let lower = line.to_lowercase();
        let words: Vec<&str> = lower.split(' ').map(word).collect();
        let wrong = (0..words.len()).find(|&at| !self.determiner_fits(&words, at) || !self.verb_fits(&words, at))?;
        Some(format!("{}: {line}", words[wrong]))
    }

    /// Whether a noun follows a determiner of its form.
    fn determiner_fits(&self, words: &[&str], at: usize) -> bool {
        let Some(noun) = self.nouns.get(words[at]) else { return true };
        let determiner = at.checked_sub(1).and_then(|before| self.determiners.get(words[before]));
        determiner.is_some_and(|forms| forms.contains(&noun.form))
    }

    /// Whether a verb agrees in number: in "que a menina comprou" with the noun before it, otherwise with the first
    /// noun, if any.
    fn verb_fits(&self, words: &[&str], at: usize) -> bool {
        let Some(&plural) = self.verbs.get(words[at]) else { return true };
        let relative = at >= 3 && words[at - 3] == "que";
        let from = if relative { at - 1 } else { 0 };
        let subject = words[from..at].iter().find_map(|word| self.nouns.get(word));
        subject.is_none_or(|noun| noun.form.plural == plural)
    }
}

fn word(token: &str) -> &str {
    token.trim_end_matches([',', '.'])
}

fn nouns() -> BTreeMap<&'static str, Noun> {
    let rows = Class::ALL.into_iter().flat_map(|class| (0..ROWS).map(move |row| (class, row)));
    let forms = rows.flat_map(|(class, row)| Form::ALL.map(|form| Noun { class, row, form }));
    forms.map(|noun| (noun.form.of(noun.class.nouns()[noun.row]), noun)).collect()
}

fn adjectives() -> BTreeMap<String, (usize, Form)> {
    let stems = ADJECTIVES.iter().enumerate();
    stems.flat_map(|(at, a)| Form::ALL.map(|form| (format!("{}{}", a.stem, form.of(ENDINGS)), (at, form)))).collect()
}

fn determiners() -> BTreeMap<&'static str, Vec<Form>> {
    let mut map = BTreeMap::new();
    for table in MARKED.iter().copied().chain([DE, AO, POR]) {
        map.extend(Form::ALL.map(|form| (form.of(table), vec![form])));
    }
    for form in [Form::new(false, false), Form::new(false, true)] {
        let both = vec![form, Form::new(true, form.plural)];
        map.extend(UNMARKED[usize::from(form.plural)].iter().map(|&word| (word, both.clone())));
    }
    map
}

fn verbs() -> BTreeMap<&'static str, bool> {
    let kinds = [Kind::Quality, Kind::Colour, Kind::Condition, Kind::Result, Kind::Passive];
    let mut tables: Vec<[&str; 2]> =
        kinds.iter().flat_map(|kind| kind.copulas()).copied().chain(RETURNS.iter().copied()).collect();
    for class in Class::ALL {
        tables.extend(class.relative_verbs());
        tables.extend(class.activities().iter().map(|&(verb, _)| verb));
    }
    let forms = tables.into_iter().flat_map(|[singular, plural]| [(singular, false), (plural, true)]);
    forms.map(|(verb, plural)| (verb.split_once(' ').map_or(verb, |(finite, _)| finite), plural)).collect()
}
