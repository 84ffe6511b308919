//! A sparse array: it knows which of its places are in use, so that clearing, adding and reading it
//! cost what it holds, not what it could hold. A guest's query reads every source, and of hundreds
//! of reasons and codes a boot sees a dozen.

use std::ops::{Index, IndexMut};

/// Words of bits, one for each place.
const WORDS: usize = 4;

/// An array of `N` places, at most 256. A place that nobody has asked to change holds the default.
#[derive(Clone, Debug)]
pub struct Sparse<T, const N: usize> {
    places: [T; N],
    used: [u64; WORDS],
}

impl<T: Copy + Default, const N: usize> Default for Sparse<T, N> {
    fn default() -> Self {
        const { assert!(N <= WORDS * 64) };
        Self {
            places: [T::default(); N],
            used: [0; WORDS],
        }
    }
}

impl<T: Copy + Default, const N: usize> Sparse<T, N> {
    /// Gives every place its default again.
    pub fn clear(&mut self) {
        for place in self.used() {
            self.places[place] = T::default();
        }
        self.used = [0; WORDS];
    }

    /// The places in use now, in order. What is changed meanwhile is not among them.
    pub fn used(&self) -> impl Iterator<Item = usize> + use<T, N> {
        bits(self.used)
    }

    /// The places in use here or there.
    pub fn used_with<U, const M: usize>(
        &self,
        other: &Sparse<U, M>,
    ) -> impl Iterator<Item = usize> + use<T, U, N, M> {
        bits(std::array::from_fn(|word| {
            self.used[word] | other.used[word]
        }))
    }

    /// What is in use, with its place.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.used().map(|place| (place, &self.places[place]))
    }
}

/// The numbers of the bits that are set.
fn bits(words: [u64; WORDS]) -> impl Iterator<Item = usize> {
    words.into_iter().zip(0..).flat_map(|(mut word, at)| {
        std::iter::from_fn(move || {
            let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
            word &= word - 1;
            Some(at * 64 + bit)
        })
    })
}

impl<T, const N: usize> Index<usize> for Sparse<T, N> {
    type Output = T;

    fn index(&self, place: usize) -> &T {
        &self.places[place]
    }
}

/// A place is in use from the moment when it can be changed.
impl<T, const N: usize> IndexMut<usize> for Sparse<T, N> {
    fn index_mut(&mut self, place: usize) -> &mut T {
        let value = &mut self.places[place];
        self.used[place / 64] |= 1 << (place % 64);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_an_array(changes in prop::collection::vec((0..241_usize, any::<u64>()), 0..40)) {
            let (mut sparse, mut dense) = (Sparse::<u64, 241>::default(), [0_u64; 241]);
            for &(place, value) in &changes {
                sparse[place] = value;
                dense[place] = value;
            }
            prop_assert!((0..241).all(|place| sparse[place] == dense[place]));
            let known: Vec<_> = sparse.iter().filter(|(_, n)| **n > 0).collect();
            let expected: Vec<_> = dense.iter().enumerate().filter(|(_, n)| **n > 0).collect();
            prop_assert_eq!(known, expected);
            sparse.clear();
            prop_assert!(sparse.used().next().is_none());
            prop_assert!((0..241).all(|place| sparse[place] == 0));
        }
    }

    #[test]
    fn what_is_used_here_or_there() {
        let (mut a, mut b) = (Sparse::<u8, 128>::default(), Sparse::<u64, 241>::default());
        (a[3], a[127], b[3], b[64], b[240]) = (1, 1, 1, 1, 1);
        let both: Vec<_> = a.used_with(&b).collect();
        assert_eq!(both, [3, 64, 127, 240]);
    }
}
