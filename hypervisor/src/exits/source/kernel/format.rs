//! A tracepoint's `format` file: where in its record which field lies.
//!
//! Source: linux/Documentation/trace/events.rst, "Event formats".

/// A field of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Its offset in the record.
    pub(super) offset: usize,
    /// Its size, in bytes.
    pub(super) size: usize,
}

/// The pointer that lies over a record's first bytes while a program sees it.
const HIDDEN: usize = 8;
/// Longest record that perf gives a program (PERF_MAX_TRACE_SIZE).
const RECORD_MAX: usize = 8192;

/// Finds a field; its size must be one of `sizes`.
pub(super) fn field(format: &str, name: &str, sizes: &[usize]) -> Result<Field, String> {
    let found = format.lines().filter_map(parse).find(|(n, _)| *n == name);
    let Some((_, field)) = found else {
        return Err(format!("has no field `{name}`"));
    };
    let Field { offset, size } = field;
    if !sizes.contains(&size) {
        return Err(format!("has a field `{name}` of {size} bytes"));
    }
    // The verifier refuses what is not aligned.
    let inside = offset >= HIDDEN
        && offset
            .checked_add(size)
            .is_some_and(|end| end <= RECORD_MAX);
    if !inside || offset % size != 0 {
        return Err(format!("has its field `{name}` at offset {offset}"));
    }
    Ok(field)
}

/// The names of the fields that other tracepoints do not share.
pub(super) fn own_fields(format: &str) -> impl Iterator<Item = &str> {
    let names = format.lines().filter_map(parse).map(|(name, _)| name);
    names.filter(|name| !name.starts_with("common_"))
}

/// Takes apart a line: `field:TYPE NAME; offset:N; size:N; signed:N;`, with tabs between.
fn parse(line: &str) -> Option<(&str, Field)> {
    let mut parts = line.trim().split(';').map(str::trim);
    let declaration = parts.next()?.strip_prefix("field:")?;
    let name = declaration.rsplit([' ', '*']).next()?;
    let name = name.split('[').next()?;
    let offset = parts.next()?.strip_prefix("offset:")?.parse().ok()?;
    let size = parts.next()?.strip_prefix("size:")?.parse().ok()?;
    Some((name, Field { offset, size }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "\
name: kvm_exit
ID: 103
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:unsigned int exit_reason;\toffset:8;\tsize:4;\tsigned:0;
\tfield:u64 info1;\toffset:32;\tsize:8;\tsigned:0;
\tfield:char comm[16];\toffset:40;\tsize:16;\tsigned:0;
\tfield:char *name;\toffset:57;\tsize:8;\tsigned:0;
\tfield:u64 far;\toffset:18446744073709551608;\tsize:8;\tsigned:0;

print fmt: \"field:%u\", REC->exit_reason
";

    #[test]
    fn fields_are_found() {
        let at = |offset, size| Ok(Field { offset, size });
        assert_eq!(field(FORMAT, "exit_reason", &[4, 8]), at(8, 4));
        assert_eq!(field(FORMAT, "info1", &[8]), at(32, 8));
        assert_eq!(
            field(FORMAT, "comm", &[16]),
            Err("has its field `comm` at offset 40".into())
        );
    }

    #[test]
    fn own_fields_come_in_order() {
        let names: Vec<_> = own_fields(FORMAT).collect();
        assert_eq!(names, ["exit_reason", "info1", "comm", "name", "far"]);
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let why = |name, sizes: &[usize]| field(FORMAT, name, sizes).unwrap_err();
        assert_eq!(why("vcpu_id", &[4]), "has no field `vcpu_id`");
        assert_eq!(why("info1", &[4]), "has a field `info1` of 8 bytes");
        assert_eq!(
            why("common_pid", &[4]),
            "has its field `common_pid` at offset 4"
        );
        assert_eq!(why("name", &[8]), "has its field `name` at offset 57");
        assert!(why("far", &[8]).starts_with("has its field `far` at offset"));
        assert_eq!(field("", "x", &[4]), Err("has no field `x`".into()));
    }
}
