//! A COPY or ADD instruction after expansion of variables.

use crate::download::WebSource;

/// A COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySpec {
    /// Where the sources are.
    pub from: CopyFrom,
    /// The sources, in order.
    pub sources: Vec<CopySource>,
    /// The destination as written; a relative one is below `cwd`.
    pub dest: String,
    /// The working directory, absolute.
    pub cwd: String,
    /// Owner as written: `user[:group]`, names or numbers.
    pub chown: Option<String>,
    /// Mode as written: octal, or symbolic as for chmod(1).
    pub chmod: Option<String>,
    /// Patterns of files that are not copied, as in an ignore file.
    pub exclude: Vec<String>,
    /// Keep the directories of source paths.
    pub parents: bool,
    /// Make the layer independent of the layers below it.
    pub link: bool,
    /// Unpack local tar archives (ADD). A download has a setting of its own.
    pub unpack: bool,
}

/// Where the sources of a COPY are.
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
    /// A file whose content is in the Dockerfile.
    Heredoc {
        /// Name of the file.
        name: String,
        /// Its content.
        data: Vec<u8>,
    },
    /// A file on a server (ADD).
    Web(WebSource),
}
