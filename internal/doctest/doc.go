// Package doctest holds the documentation to what the program does. It has no
// code of its own; `go test ./internal/doctest` reads README.md, docs/ and
// examples/ and checks that
//
//   - every balsa command and flag that they show exists,
//   - every manifest in them parses and is valid,
//   - links between them lead somewhere,
//   - the reference lists every reason, limit, metric and field that the code
//     has, and nothing else,
//   - the transcripts marked `console run` print, on a cluster of one made for
//     the purpose, what they say they print.
//
// How a document is marked up for that is in the comment of markdown_test.go.
//
// It refuses to judge prose.
package doctest
