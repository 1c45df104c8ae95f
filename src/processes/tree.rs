//! Sums over a binary tree on the index of their parts: 0 and 1, 2 and 3, then these sums, and so on.

/// The sum of a complete subtree: of the `1 << level` parts from `first` on, which is a multiple of that.
pub(crate) struct Root<T> {
    pub(crate) first: usize,
    pub(crate) level: u32,
    pub(crate) sum: T,
}

/// The largest complete subtrees of the parts so far, which came one after the other, from any of them on.
pub(crate) struct Tree<T>(Vec<Root<T>>);

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self(vec![])
    }
}

impl<T> Tree<T> {
    /// Takes the next part, or the sum of the next parts if these are a complete subtree.
    pub(crate) fn push<E>(&mut self, mut root: Root<T>, add: impl Fn(T, T) -> Result<T, E>) -> Result<(), E> {
        let is_left_of =
            |left: &Root<T>, right: &Root<T>| left.level == right.level && (left.first >> left.level).is_multiple_of(2);
        while let Some(left) = self.0.pop_if(|left| is_left_of(left, &root)) {
            root = Root { first: left.first, level: left.level + 1, sum: add(left.sum, root.sum)? };
        }
        self.0.push(root);
        Ok(())
    }

    /// The subtrees, in order.
    pub(crate) fn roots(self) -> Vec<Root<T>> {
        self.0
    }

    /// The sum of all parts, if there are any and they began with 0: the smaller subtrees, which came later, are added to the
    /// larger ones.
    pub(crate) fn finish<E>(self, add: impl Fn(T, T) -> Result<T, E>) -> Result<Option<T>, E> {
        let mut roots = self.0.into_iter().rev().map(|root| root.sum);
        let Some(last) = roots.next() else { return Ok(None) };
        roots.try_fold(last, |sum, left| add(left, sum)).map(Some)
    }
}

/// The first part and the level of each of the subtrees that a range of parts makes.
pub(crate) fn subtrees(parts: std::ops::Range<usize>) -> Vec<(usize, u32)> {
    let mut tree = Tree::default();
    for first in parts {
        let Ok(()) = tree.push(Root { first, level: 0, sum: () }, |(), ()| Ok::<_, std::convert::Infallible>(()));
    }
    tree.roots().iter().map(|root| (root.first, root.level)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(a: String, b: String) -> Result<String, ()> {
        Ok(format!("({a}{b})"))
    }

    fn leaf(first: usize) -> Root<String> {
        Root { first, level: 0, sum: first.to_string() }
    }

    #[test]
    fn parts_are_added_over_a_tree_on_their_index() {
        for (n, expected) in [
            (1, "0"),
            (2, "(01)"),
            (3, "((01)2)"),
            (5, "(((01)(23))4)"),
            (6, "(((01)(23))(45))"),
            (7, "(((01)(23))((45)6))"),
            (8, "(((01)(23))((45)(67)))"),
        ] {
            let mut tree = Tree::default();
            (0..n).for_each(|i| tree.push(leaf(i), add).unwrap());
            assert_eq!(tree.finish(add).unwrap().unwrap(), expected);
        }
        assert_eq!(Tree::default().finish(add), Ok(None));
    }

    /// However the parts are cut into ranges that are added first.
    #[test]
    fn ranges_of_parts_add_up_to_the_same_tree() {
        for n in 1..20 {
            let mut whole = Tree::default();
            (0..n).for_each(|i| whole.push(leaf(i), add).unwrap());
            let whole = whole.finish(add).unwrap().unwrap();
            for count in 1..=n {
                let mut tree = Tree::default();
                for rank in 0..count {
                    let share = super::super::share_of(n, rank, count);
                    let mut own = Tree::default();
                    share.clone().for_each(|i| own.push(leaf(i), add).unwrap());
                    let roots = own.roots();
                    let places: Vec<_> = roots.iter().map(|root| (root.first, root.level)).collect();
                    assert_eq!(places, subtrees(share));
                    roots.into_iter().for_each(|root| tree.push(root, add).unwrap());
                }
                assert_eq!(tree.finish(add).unwrap().unwrap(), whole, "{n} parts in {count} ranges");
            }
        }
    }
}
