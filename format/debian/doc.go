// Package debian reads what a Debian mirror serves: signed release files,
// package indexes, versions and relations, and binary packages (.deb). It
// decides which packages belong together. All of it are pure functions of
// bytes: nothing is fetched, run or written here, and every input is hostile.
//
// Sources: deb(5), deb-control(5), deb-version(7), Debian Policy 5 and 7,
// the Debian repository format.
package debian
