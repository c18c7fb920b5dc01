//! Which cores the shards run on.

use super::Error;

/// The cores that get a shard each. Only cores in the process's affinity mask count, so that `taskset` and
/// the cpuset of a container are respected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cores {
    /// Every core there is.
    #[default]
    All,
    /// This many, from the first on; fewer when there are fewer.
    Count(usize),
    /// Exactly these, by the kernel's numbers.
    List(Vec<usize>),
}

impl Cores {
    /// The cores' numbers.
    pub(super) fn resolve(&self) -> Result<Vec<usize>, Error> {
        let available: Vec<usize> =
            core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
        self.choose(available)
    }

    fn choose(&self, mut available: Vec<usize>) -> Result<Vec<usize>, Error> {
        match self {
            Self::All => {}
            Self::Count(count) => available.truncate((*count).max(1)),
            Self::List(list) => {
                if let Some(&core) = list.iter().find(|core| !available.contains(core)) {
                    return Err(Error::CoreUnavailable { core, available });
                }
                available.clone_from(list);
            }
        }
        if available.is_empty() {
            // The mask cannot be read: one shard, wherever the kernel puts it.
            available.push(0);
        }
        Ok(available)
    }
}

/// Runs the calling thread on `core` only. Answers whether the kernel agreed.
pub(super) fn pin(core: usize) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: core })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_cut_to_what_there_is() {
        assert_eq!(Cores::Count(8).choose(vec![2, 5]).expect("cores"), [2, 5]);
        assert_eq!(Cores::Count(1).choose(vec![2, 5]).expect("cores"), [2]);
        assert_eq!(Cores::All.choose(vec![]).expect("cores"), [0]);
    }

    #[test]
    fn a_core_outside_the_mask_is_an_error() {
        let refused = Cores::List(vec![5, 7]).choose(vec![2, 5]);
        assert!(matches!(refused, Err(Error::CoreUnavailable { core: 7, .. })));
    }
}
