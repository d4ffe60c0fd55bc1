//! How much a test repeats.

/// `ordinary` repetitions, or `deep` where the environment has `DEEP`, as in `.ci/deep`.
pub(crate) fn repeats<T>(ordinary: T, deep: T) -> T {
    if std::env::var_os("DEEP").is_some() { deep } else { ordinary }
}
