// Package control is what the concerns of the reconciler share: the Change that
// names the revisions it is based on, the Writer that commits it for one
// leadership term, typed reads of a view, and the shape of a Concern.
//
// It refuses to decide anything: plans live in the packages of the concerns.
package control
