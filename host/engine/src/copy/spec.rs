//! What a COPY or ADD instruction asks for, after expansion of variables.

use crate::download::WebSource;

/// A COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySpec {
    /// Where the sources are taken from.
    pub from: CopyFrom,
    /// What is copied, in order.
    pub sources: Vec<CopySource>,
    /// The destination as written; relative ones are below `cwd`.
    pub dest: String,
    /// Working directory in force, absolute.
    pub cwd: String,
    /// Owner as written: `user[:group]`, names or numbers.
    pub chown: Option<String>,
    /// Mode as written: octal, or symbolic as for chmod(1).
    pub chmod: Option<String>,
    /// Patterns of what is left out, as in an ignore file.
    pub exclude: Vec<String>,
    /// Keep the directories of the sources' paths.
    pub parents: bool,
    /// Make the layer without looking at what is below it.
    pub link: bool,
    /// Unpack files that are tar archives (ADD). Files from servers say so themselves.
    pub unpack: bool,
}

/// Where the sources of a COPY are taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyFrom {
    /// The build context.
    Context,
    /// A stage of the plan, by its position there.
    Stage(usize),
    /// An image, or a named context, by its name as written.
    Image(String),
}

/// One source of a COPY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySource {
    /// A path or a pattern, as written.
    Path(String),
    /// A file whose content stands in the Dockerfile.
    Heredoc {
        /// Name of the file.
        name: String,
        /// Its content.
        data: Vec<u8>,
    },
    /// A file on a server (ADD).
    Web(WebSource),
}
