//! Tests of all operations alike.

mod bf16;
mod properties;
mod row_sums;
mod same_bits;
mod second_derivatives;

/// An operation that has no row among the properties, or none among those of the same bits, is missed here.
#[test]
fn every_operation_is_in_the_tables() {
    let exports = include_str!("../mod.rs").split("pub use ").skip(1).filter_map(|rest| rest.split(';').next());
    let exports = exports.filter(|path| !path.starts_with("crate::")).filter_map(|path| path.split_once("::"));
    let names = exports.flat_map(|(_, names)| names.split(['{', '}', ',', ' ', '\n']));
    let is_function = |name: &&str| name.starts_with(char::is_lowercase);
    // The other forms of attention are tested with it, and tables of angles have no gradient.
    let others = ["attention_with_lse", "attention_with_weights", "self_attention", "rotary_tables"];
    let names: Vec<&str> = names.filter(is_function).filter(|name| !others.contains(name)).collect();
    assert!(names.len() > 15, "{names:?}");
    for (table, text) in [("properties", include_str!("properties.rs")), ("same_bits", include_str!("same_bits.rs"))] {
        let has = |name: &str| text.contains(&format!("ops::{name}(")) || text.contains(&format!("ops::{name})"));
        let missing: Vec<_> = names.iter().filter(|name| !has(name)).collect();
        assert!(missing.is_empty(), "{table}.rs has no {missing:?}");
    }
}
