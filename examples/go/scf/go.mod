module bootstrap

go 1.22
