<?php
/** Offers the server that ADMINER_DEFAULT_SERVER names. */
class AdminerDefaultServer
{
	public function loginFormField($name, $heading, $value)
	{
		$server = getenv('ADMINER_DEFAULT_SERVER') ?: 'db';
		if ($name === 'server') {
			return $heading . str_replace('value=""', 'value="' . htmlspecialchars($server) . '"', $value) . "\n";
		}
	}
}
