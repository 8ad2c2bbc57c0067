<%inherit file="base.mako"/>
<%def name="title()">That did not work</%def>
<article class="narrow">
<h1>That did not work</h1>
<p role="alert">${message}</p>
<p><a href="${base}/">To the first page</a></p>
</article>
