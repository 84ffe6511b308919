//! Guests of the black-box tests: one behaviour each, under `src/bin/`.
#![no_std]
