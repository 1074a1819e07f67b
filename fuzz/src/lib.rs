//! Fuzz targets of Egret as plain functions.
