//! Only the test beside this file counts.
