pub(crate) mod glob;
pub(crate) mod ignore;
