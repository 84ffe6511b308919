//! Reports: each renders a `&Profile` and knows nothing else.
